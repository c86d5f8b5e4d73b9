"""Evaluation: how right a dataset is, how good its settings are, and what a model or an explainer knows.

evaluation_set.py  a dataset beside ground truth, and its records with their heat maps
matching.py        the regions of a dataset that answer a target of the ground truth
metrics.py         METRICS: one number per target; figures of linked phrases
text_only.py       answers without a look at the image, from usual places of things
estimates.py       means with bootstrap intervals; risk, coverage and calibration of scores
evaluation.py      `eval`
verdicts.py        advice from the figures of `eval`, `tune` and `calibrate`
absent.py          absent phrases: which to ask for
absent_figures.py  absent phrases: whether they are recognised
presence.py        absent phrases asked of a model, and the fit of presence
calibrate.py       `calibrate`
review_sample.py   the regions that people review
review_truth.py    people's answers as ground truth
review_figures.py  figures from people's answers: `stats --reviews`
review_fit.py      scores fitted to people's answers: `calibrate --reviews`
model_check.py     `models check`
"""
