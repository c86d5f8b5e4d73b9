"""STEP 3: heat map -> regions with mask, box and score.

config.py      the settings
stage.py       what the pipeline calls
groups.py      which phrases of an image name the same thing; things.py and things.txt, what words name; groups.json,
               the fitted weights
shared.py      one map for all phrases of a thing
cut.py         where a map is cut, the parts it falls into, which of them are kept
components.py  raw map -> levels on the grid -> a fine map of the same piecewise bilinear surface -> cleaning, connected
               components, what is measured of each
colours.py     the image as the model sees it: maps along its edges, outlines by its colours
paint.py       a component -> run-length code at the size of the image
score.py       SCORES: measurements -> 0 .. 1; a calibration: measurements -> a probability
"""
