"""How right a dataset is: its regions and heat maps against ground truth, and what a model knows.

grouping.py  are phrases linked as the truth links them
matching.py  which regions of the dataset answer which target of the truth
metrics.py   METRICS: one number per target
absent.py    phrases that are not there: which to ask for, and whether they are found out
scores.py    risk, coverage and calibration of scores, COCO's average precision, and the fit of a calibration
report.py    means with bootstrap intervals, overall and by group
compare/     explainers on the same images and phrases
probe/       what a model knows of regions
"""
