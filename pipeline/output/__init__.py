"""The folder of a dataset while a run writes it.

request.py         what a user asks, compared with what the folder holds; needs no library of the model
dataset_folder.py  whether a run may write there, what is done already, and what is written at the end
previous_run.py    the run that the folder holds, and whether another may resume or replace it
journal.py         the shards that hold rows, and the pieces of the input that were read
shard_states.py    which shards of previous attempts count, and which are late or damaged
shards.py          the shards of a run that is resumed
lock.py            one run at a time
decisions.py       what the first images have decided, as it is stored
first_images.py    the records of the first images, until they are rows
backup.py          the run that `--fresh` replaces
report.py          counts and times of a run, and what people see of them
manifest.py        the manifest and the card
ids.py             collisions of ids
merge.py           one dataset of the parts of an input
repair.py          a lost manifest, made again from the shards
"""
