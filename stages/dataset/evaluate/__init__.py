"""How right a dataset is: its regions and heat maps against ground truth.

truth.py      what a ground truth is
read_truth.py TRUTHS: kind -> reader; coco.py, flickr30k.py, refcoco.py
matching.py   which regions of the dataset answer which target of the truth
metrics.py    METRICS: one number per target
scores.py     risk, coverage and calibration of scores; coco_ap.py average precision
bootstrap.py  95 % intervals
report.py     means with bootstrap intervals, overall and by group
"""
