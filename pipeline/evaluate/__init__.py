"""Every judgement: how right a dataset is, how good its settings are, and what a model or an explainer knows.

evaluation_set.py  a dataset beside ground truth, and its records with their heat maps
matching.py     which regions of a dataset answer which target of the ground truth
metrics.py      METRICS: one number per target; figures of linked phrases
text_only.py    answers without a look at the image, from where things usually are
estimates.py    means with bootstrap intervals, risk, coverage and calibration of scores, logistic regression
evaluation.py   `eval`
verdicts.py     what its figures, and those of `tune` and `calibrate`, say a user should do
absent.py       phrases that are not there: which to ask for, and whether they are recognised
presence.py     the same phrases asked of a model, and the fit of presence
calibrate.py    `calibrate`; tune.py, `tune`
review_sample.py  which regions people review; review_figures.py, what answers say; review_fit.py, scores from them
compare/        `compare`
model_check.py  `models check`
model_score.py  `score-model`: probe.py embeds, answers.py counts
"""
