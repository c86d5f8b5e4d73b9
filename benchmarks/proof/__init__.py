"""The proof of the data: models that learned from the regions of several sources, and what they know then."""
