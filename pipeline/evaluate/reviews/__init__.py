"""Answers of people about regions.

sample.py    the regions that people review
figures.py   what answers say of a dataset: `stats --reviews`
fit.py       scores fitted to answers: `calibrate --reviews`
boxes.py     boxes fitted to those that people dragged
"""
