"""STEP 3: heat map -> regions with mask, box and score.

heat.py        raw map -> levels on the grid -> a fine map of the same piecewise bilinear surface
canvas.py      the image as the model sees it
guide.py       a fine map that follows the edges of the image: the guided filter
threshold.py   where the map is cut
components.py  cleaning, connected components, what is measured of each
refine.py      the outline by the colours of the image: GrabCut
score.py       SCORES: measurements -> 0 .. 1
paint.py       a component -> run-length code at the size of the image
stage.py       the stage and its config
"""
