"""Answers of people about regions.

figures.py   the regions that people review, and what answers say of a dataset: `stats --reviews`
fit.py       scores fitted to answers: `calibrate --reviews`
boxes.py     boxes fitted to those that people dragged
"""
