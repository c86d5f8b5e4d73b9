"""The explainers beside Grad-ECLIP. `stages.explain.EXPLAINERS` names each; no step imports them.

attention.py  attention weights and their gradients
cams.py       class activation maps
dense.py      embeddings of patches, compared with the text
rise.py       answers to images that are partly hidden
m2ib.py       an information bottleneck
walk.py       the tensors of a tower at which methods take gradients
"""
