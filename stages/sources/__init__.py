"""Other origins of regions than heat maps: published ways of making the same rows, for comparison.

naming.py    boxes of any origin -> regions, called by the best phrase or concept of a pool according to CLIP
looks.py     CLIP's embedding of a box: of its part of the image, or from dense features
grid.py      two sources: `grid` and `crops`
proposals.py, boxes.py, detector.py    one source each

Each is a `stages.regions.source.RegionSource` with its settings, found by the entry points in pyproject.toml.
"""
