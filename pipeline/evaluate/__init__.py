"""Evaluation: how right a dataset is, and what a model knows.

evaluation_set.py     a dataset beside ground truth, and its records with their heat maps
matching.py           the regions of a dataset that answer a target of the ground truth
metrics.py            METRICS: one number per target
text_only.py          answers without a look at the image, from usual places of objects
estimates.py          means with bootstrap intervals; risk, coverage and calibration of scores
evaluation.py         `eval`
absent.py             absent phrases: which to ask for
absent_figures.py     absent phrases: whether they are recognised
foreign_phrases.py    phrases of other images asked of a model
reviews.py            regions that people review, and what answers say of a dataset: `stats --reviews`
verdicts.py           advice from the figures of `eval` and `calibrate`
model_check.py        `models check`
"""
