"""qwen-vl-finetune's LazySupervisedDataset: IMAGES JSONL MIN_PIXELS MAX_PIXELS -> entries of (answer, resized px)."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from PIL import Image
from qwenvl.data import data_dict
from qwenvl.data.data_processor import LazySupervisedDataset, _build_messages
from transformers import Qwen2VLImageProcessor

images, path, *pixels = sys.argv[1:]
data_dict["phrasebox"] = {"annotation_path": path, "data_path": images}
least, most = map(int, pixels)
settings = {"dataset_use": "phrasebox", "model_type": "qwen2.5vl", "data_packing": False}
arguments = SimpleNamespace(**settings, min_pixels=least, max_pixels=most)
# The trainer's own setting of these numbers has no effect with transformers 5: the processor must have them.
image_processor = Qwen2VLImageProcessor(min_pixels=least, max_pixels=most)
processor = SimpleNamespace(image_processor=image_processor, tokenizer=None)
dataset = LazySupervisedDataset(processor, arguments)
entries = []
for item in dataset.list_data_dict:
    question, answer = _build_messages(item, Path(item["data_path"]))
    image, _ = question["content"]
    _, rows, columns = image_processor(Image.open(image["image"]))["image_grid_thw"][0]
    cell = image_processor.patch_size
    entries.append((answer["content"][0]["text"], (int(columns) * cell, int(rows) * cell)))
print(json.dumps(entries))
