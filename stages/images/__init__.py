"""Bytes to pixels, and pixels to pictures that people look at."""
