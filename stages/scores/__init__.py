"""How likely a region is right, and a phrase in its image: evidence, and what was fitted to it.

score.py             the evidence of a region -> 0 .. 1, and with a `Calibration` a probability
presence.py          whether a phrase is in the image, by what the model's pass has computed
detected.py          both, for the boxes of a source
fitted_presence.py   the fit of presence, to true labels or to noisy ones
foreign_captions.py  captions of other images, and how many there are
captioning.py        how images are captioned: what a calibration was fitted to
fitted_cut.py        where a map is cut; fitted
learned_box.py       where a box is, given the cuts of a map and the words; fitted
fits.py              what is fitted and stored as JSON
logistic.py          the fit of a logistic regression
"""
