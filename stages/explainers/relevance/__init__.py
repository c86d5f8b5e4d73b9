"""Explainers that propagate the score back through the network, layer by layer, as relevance."""
