"""What measures and trains methods. The product runs without this folder, and never imports it.

compare/      explainers side by side on the same images
score_model/  what a CLIP model knows of regions
tune/         settings tried on images with ground truth
finetune/     a CLIP trained on a dataset
"""
