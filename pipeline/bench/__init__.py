"""`make bench`: one JSON line for each figure, measured against a baseline in the same process.

The models have the real architectures and random weights: the time does not depend on what a model knows. Timings
alternate between the two sides, so that a machine that slows down slows both.

timing.py     paired timings
model.py      heat maps against `encode_image`
stages.py     regions and phrases, each alone
engines.py    ray against inline, and the start
whole_run.py  a whole run against decoding and `encode_image` alone
loaders.py    the loaders for training
"""
