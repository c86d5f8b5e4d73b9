"""Explainers that look at what masked copies of an image mean."""
