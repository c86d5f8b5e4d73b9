"""Heat map -> regions with mask, box and score.

config.py       the settings
stage.py        the stage: threads, device, segmenter
maker.py        a record -> its regions; what the phrases of one object share
contours.py     a map -> its regions: cut, then drawn
  cut.py        the map -> its cut parts, in this order:
    colours.py      the image as the model sees it: with `upsample: guided` the map along its edges
    fine_map.py     the map between its cells
    cut_rules.py    where the map is cut: the rules
    parts.py        the parts of the cut map, and their order
    ladder.py       the parts of the map at many cuts, which a learned box is made from
  paint.py      a part -> run-length code at the size of the image
outlines.py     with `refine: sam`, in the place of contours.py: cut parts -> regions, by a segmenter
"""
