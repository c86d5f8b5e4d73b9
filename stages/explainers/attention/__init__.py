"""Explainers that read the attention of a transformer: its weights, their products, their gradients."""
