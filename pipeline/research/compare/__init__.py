"""Explainers side by side on the same pictures: `phrasebox compare`.

pictures.py      which images, phrases and places
maps.py          which explainers, with which settings; their heat maps and cost
sanity.py        maps with shuffled weights and of other phrases
faithfulness.py  insertion and deletion
figures.py       numbers from the maps, with intervals and differences
comparison.py    all of it for one source of images
tables.py        its figures as tables
page.py          its maps as a page
command.py       the verb
"""
