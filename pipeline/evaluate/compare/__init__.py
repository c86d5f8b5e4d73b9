"""Explainers side by side on the same pictures: `phrasebox compare`.

contenders.py  which explainers, with which settings
pictures.py    which images, phrases and places
maps.py        the heat maps of all of them, also with shuffled weights; curves, cost
figures.py     numbers from the maps, with intervals and differences
page.py        a page for people
"""
