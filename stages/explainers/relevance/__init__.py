"""Explainers that hand the score back through the network, layer by layer, as relevance."""
