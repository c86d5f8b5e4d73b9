"""The explainers beside Grad-ECLIP. `phrasebox.stages.explain.EXPLAINERS` names each; no step imports them.

attention.py  attention weights, the flow through them, and their gradients
cams.py       class activation maps
dense.py      embeddings of patches, compared with the text
masked.py     images that are partly hidden: rise.py, occlusion.py, shapley.py and score_cam.py ask them
m2ib.py       an information bottleneck
lrp.py        relevance propagated from the cosine to the patches, by the layers of lrp_rules.py
walk.py       the tensors of a tower at which methods take gradients

transformer_interpretability.py has the relevance of attention times its gradient.
"""
