"""Count the head nouns of a dataset."""

from collections import Counter

import phrasebox


def heads(dataset: str) -> None:
    """Print the most frequent head nouns of the regions of DATASET."""
    regions = phrasebox.open_dataset(dataset).regions(columns=["head"])
    for head, count in Counter(regions["head"].to_pylist()).most_common(10):
        print(f"{count:6}  {head}")
