"""Fits to ground truth and to people's answers: `calibrate` writes them, and runs read them.

truth_fit.py      `calibrate --truth`: scores
cut_fit.py        its part that cuts maps
box_fit.py        its part that learns where boxes are
caption_views.py  images with some of their captions alone
presence.py       presence, with ground truth and without
review_fit.py     `calibrate --reviews`: scores
review_boxes.py   its part on boxes that people dragged
"""
