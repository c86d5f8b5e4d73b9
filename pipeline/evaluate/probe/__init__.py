"""How well a CLIP model names regions, finds the regions of phrases, and retrieves: `phrasebox score-model`.

config.py     what is asked, and how
questions.py  what the truth lets one ask of an image: regions with a class, phrases with their regions
embed.py      images and regions -> embeddings, in three ways: RoI, mask and crop
ranks.py      where the right answers stand among all, with ties at random
answers.py    embeddings -> a number for each region, phrase, image and caption
figures.py    means with bootstrap intervals, and differences between two models

`embed.py` alone needs torch. Reading images and truth is the pipeline's part.
"""
