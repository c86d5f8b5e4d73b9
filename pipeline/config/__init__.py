"""The configuration of a run, as YAML, and what is wrong with it.

run_config.py  `RunConfig`, and which settings rows depend on
output.py      its part on the dataset
text.py        configurations as YAML
errors.py      what is wrong with one, in words
paths.py       paths in configurations
"""
