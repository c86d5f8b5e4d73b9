"""Heat map -> regions with mask, box and score.

config.py      the settings
stage.py       the stage: threads, device, segmenter
maker.py       a record -> its regions; what the phrases of one object share
cut.py         a map -> its cut parts, in these steps:
fine_map.py    the map between its cells
cut_rules.py   where a map is cut: the rules
parts.py       the parts of a cut map, and their order
ladder.py      the parts of a map at many cuts, which a learned box is made from
contours.py    cut parts -> regions, by the contour of the heat or by colours
outlines.py    cut parts -> regions, by a segmenter
colours.py     the image as the model sees it: maps along its edges, outlines by its colours
paint.py       a part -> run-length code at the size of the image
"""
