"""The explainers beside Grad-ECLIP. `stages.explain.EXPLAINERS` names each; no step imports them.

attention/     attention weights and their gradients
cams.py        class activation maps
dense.py       embeddings of patches, compared with the text
perturbation/  answers to images that are partly hidden
relevance/     relevance propagated from the answer to the pixels
m2ib.py        an information bottleneck
"""
