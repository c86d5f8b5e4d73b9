"""What `phrasebox compare` asks of a model and an explainer: curves, cost, other weights, and one trunk for all."""
