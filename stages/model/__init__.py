"""MODELS: what an explainer may ask of a CLIP model, and open_clip's answer to it."""
