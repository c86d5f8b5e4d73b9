"""Heat map -> regions with mask, box and score.

config.py      the settings
stage.py       what the pipeline calls, and what the phrases of one thing share
groups.py      which phrases of an image name the same thing; things.txt, what words name; groups.json, fitted weights
cut.py         one map -> its regions
thresholds.py  where a map is cut: the rules
parts.py       the parts that a cut map falls into, and which of them are kept
colours.py     the image as the model sees it: maps along its edges, outlines by its colours
paint.py       a part -> run-length code at the size of the image
score.py       what is measured of a part -> 0 .. 1, and with a calibration a probability
"""
