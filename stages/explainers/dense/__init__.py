"""Explainers that compare each patch with the phrase, without a gradient."""
