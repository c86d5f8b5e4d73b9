"""One line of JSON for each image."""

import json
from typing import IO

from phrasebox.extend import ChosenSample, Exporter


class BoxLines(Exporter):
    summary = "SPLIT.jsonl, one line for each image"
    masks = "not written"
    next_step = "head -n 1 {out}/{split}.jsonl"

    def open_split(self, split: str) -> IO[str]:
        return self.job.folder.text(f"{split}.jsonl")

    def add(self, sample: ChosenSample) -> None:
        line = {"id": sample.row["id"], "boxes": [region["bbox"] for region in sample.regions]}
        print(json.dumps(line), file=self.files[sample.split])
