"""Open-GroundingDino's ODVGDataset: IMAGES JSONL [LABEL_MAP] -> entries of (class, box)."""

import json
import sys
from types import SimpleNamespace

from datasets.odvg import ODVGDataset, build_odvg

images, path, *label_map = sys.argv[1:]
dataset = ODVGDataset(images, path, *label_map)
entries = []
for _, target in dataset:
    names = target["caption"].removesuffix(" .").split(" . ")
    assert names == target["cap_list"] or label_map
    entries += [
        (names[number], box) for number, box in zip(target["labels"], target["boxes"].tolist(), strict=True)
    ]
arguments = SimpleNamespace(fix_size=False, max_labels=80, strong_aug=False)
place = {"root": images, "anno": path, "label_map": label_map[0] if label_map else None}
image, target = build_odvg("train", arguments, place)[0]
print()
print(
    json.dumps(
        {"entries": entries, "side": min(image.shape[1:]), "trained_boxes": target["boxes"].tolist()}
    )
)
