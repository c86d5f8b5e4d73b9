"""The parts that steps share: decoded images, CLIP models, and files that are here or elsewhere.

images/     image bytes <-> arrays
model/      a CLIP model taken apart, its checkpoints and weights
storage.py  one file system for local and remote paths
"""
