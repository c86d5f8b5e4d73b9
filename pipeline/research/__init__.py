"""What measures and trains methods. The product runs without this folder, and never imports it.

compare/      explainers side by side on the same images
score_model/  what a CLIP model knows of regions
finetune/     a CLIP trained on a dataset
"""
