"""Explainers that embed masked copies of an image."""
