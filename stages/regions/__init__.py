"""Heat map -> regions with mask, box and score.

config.py            the settings
stage.py             the stage of heat maps: threads, device, segmenter
source_stage.py      the stage of another source of regions
maker.py             a record -> its regions; what the phrases of one thing share
groups.py            which phrases name the same thing; groups.json, fitted weights
mentions.py          the same within one caption
nouns.py             what head nouns name, from nouns.txt
wording.py           what the wording of a phrase says of its object
foreign_captions.py  captions of other images, and how many there are
cut.py               a map -> its cut parts, in these steps:
fine_map.py          the map between its cells
cut_rules.py         where a map is cut: the rules
parts.py             the parts of a cut map, and their order
contours.py          cut parts -> regions, by the contour of the heat or by colours
outlines.py          cut parts -> regions, by a segmenter
ladder.py            the parts of a map at many cuts
learned_box.py       where a box is, given the ladder and the words; fitted
colours.py           the image as the model sees it: maps along its edges, outlines by its colours
paint.py             a part -> run-length code at the size of the image
source.py            the stage that makes regions without heat maps, in the place of the model
detected.py          the evidence of a detector's boxes
score.py             the evidence of a part -> 0 .. 1, and with a calibration a probability
"""
