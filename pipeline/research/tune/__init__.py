"""Settings tried on images with ground truth, one after the other: `phrasebox tune`.

trials.py   the maps and regions of a setting, judged
session.py  which settings are tried, and which stay
command.py  the verb and its tables
"""
