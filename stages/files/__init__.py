"""Files that are here or elsewhere.

storage.py     one file system for local and remote paths
disk.py        what a power cut leaves
json_files.py  JSON that pydantic checks
parquet.py     Parquet files as we write them
shards.py      digests of shards, and what they say of their run
word_lists.py  lists of words that people edit
"""
