"""Other origins of regions than heat maps: boxes of a ground truth, and boxes of a detector that takes words.

Each source is a `stages.regions.source.RegionSource` with its settings, found by the entry points in pyproject.toml.
"""
