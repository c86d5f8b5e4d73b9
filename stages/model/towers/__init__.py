"""Image towers: what explainers may ask of them (`tower`), their kinds, and how those of open_clip are taken apart."""
