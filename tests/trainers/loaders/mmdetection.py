"""MMDetection's ODVGDataset: MMDET IMAGES JSONL [LABEL_MAP] -> entries of (phrase, words of its spans, box).

Only the `__init__`s are passed by, because they import every dataset and its compiled operators.
"""

import json
import sys
import types
from pathlib import Path

folder, images, path, *label_map = sys.argv[1:]
for name, place in (("mmdet", folder), ("mmdet.datasets", f"{folder}/datasets")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [place]

from mmdet.datasets.odvg import ODVGDataset  # noqa: E402

dataset = ODVGDataset(
    ann_file=path,
    label_map_file=label_map[0] if label_map else None,
    data_prefix={"img": images},
    return_classes=True,
    pipeline=[],
    filter_cfg={"filter_empty_gt": False},
)
entries = []
for number in range(len(dataset)):
    data = dataset.get_data_info(number)
    assert Path(data["img_path"]).is_file()
    for instance in data["instances"]:
        label = instance["bbox_label"]
        if data["dataset_mode"] == "VG":
            phrase = data["phrases"][label]
            words = [data["text"][start:end].lower() for start, end in phrase["tokens_positive"]]
            entries.append((phrase["phrase"], words, instance["bbox"]))
        else:
            entries.append((data["text"][str(label)], [], instance["bbox"]))
print(json.dumps(entries))
