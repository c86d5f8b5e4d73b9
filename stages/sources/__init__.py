"""Other origins of regions than heat maps: published ways of making the same rows.

naming.py    boxes of any origin -> regions, called by the phrase that CLIP finds nearest to each
box_embeddings.py    CLIP's embedding of a box: of its part of the image, or from dense features
grid.py      two sources: `grid` and `crops`
proposals.py, boxes.py, detector.py    one source each

Each source is a `phrasebox.stages.sources.source.RegionSource` with its settings, found by the entry points in
pyproject.toml.
"""
