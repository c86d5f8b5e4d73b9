"""LLaMA-Factory's reader of a registered file: FOLDER IMAGES NAME -> entries of (image, question, answer)."""

import json
import sys
from types import SimpleNamespace

from datasets import load_dataset
from llamafactory.data.converter import align_dataset
from llamafactory.data.parser import get_dataset_list

folder, images, name = sys.argv[1:]
(registered,) = get_dataset_list([name], folder)
rows = load_dataset("json", data_files=f"{folder}/{registered.dataset_name}", split=registered.split)
arguments = SimpleNamespace(
    media_dir=images, streaming=False, preprocessing_num_workers=None, overwrite_cache=True
)
aligned = align_dataset(rows, registered, arguments, SimpleNamespace(local_process_index=0))
entries = []
for row in aligned:
    (image,), (question,), (answer,) = row["_images"], row["_prompt"], row["_response"]
    entries.append((image, question["content"], answer["content"]))
print()
print(json.dumps(entries))
