"""Heat map -> regions with mask, box and score.

config.py       the settings
stage.py        the stage: threads, device, segmenter
maker.py        a record -> the maps of its objects, what their phrases share; at the end: scores, and absent phrases
contours.py     a map -> its regions: cut, then drawn
  cut.py        the map -> its cut parts, in this order:
    colours.py      with `upsample: guided` the map along the edges of the image, as the model sees it
    fine_map.py     the map between its cells
    cut_rules.py    where the map is cut: the rules
    parts.py        the parts of the cut map, and their order
    ladder.py       the parts of the map at many cuts, from which `scores/learned_box.py` makes the box
  paint.py      a part -> run-length code at the size of the image
outlines.py     with `refine: sam`, in the place of contours.py: cut parts -> regions, by a segmenter
"""
