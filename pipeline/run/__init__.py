"""A run: from configuration to dataset.

run.py            the run, step by step
decisions.py      what it computes with, decided once and before it computes:
source.py         what that is for heat maps, and for regions of another source
warm_up.py        its first images, which decide
presence_fit.py   presence, fitted to them where no calibration holds
domain_shift.py   whether they are like the images of the calibration
score_meaning.py  whether scores are probabilities, and what may be wrong with them
concept_pool.py   the concepts of all captions, for sources that name boxes
calibration.py    the calibration that holds for the model and the settings
steps.py          the stages, in order
stage_calls.py    stages called in this process
start.py          starts an engine
engines/          one process, or Ray Data
plan.py           time, memory and disk of a run, before it
"""
