"""A dataset read back: its folder, its images, a choice of its regions, and people's marks.

For everything that uses a dataset after the run: exports, loaders, statistics, the viewer.
"""
