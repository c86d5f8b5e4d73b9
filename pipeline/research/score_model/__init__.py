"""How well a CLIP model names regions, finds phrases, and retrieves: `phrasebox score-model`.

probe.py    embeds images, regions and texts
answers.py  counts the right answers
job.py      all of it for one model
command.py  the verb, and its table
"""
