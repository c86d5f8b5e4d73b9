"""Class activation maps: features weighed by the gradient of the cosine."""
