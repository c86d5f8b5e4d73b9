"""Explainers that read attention: its weights, their products, their gradients."""
