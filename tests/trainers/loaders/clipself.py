"""CLIPSelf's COCORegionCLIPDataset: IMAGES JSON EMBEDDINGS -> entries of (row of the embeddings, box px)."""

import json
import sys
import types
from types import SimpleNamespace

import numpy as np

sys.modules["panopticapi"] = types.ModuleType("panopticapi")  # for panoptic segments only, and no package
sys.modules["panopticapi.utils"] = sys.modules["panopticapi"].utils = types.ModuleType("panopticapi.utils")

from open_clip.transform import ResizeLongest  # noqa: E402
from torchvision.transforms import Compose, Lambda, ToTensor  # noqa: E402
from training.data import COCORegionCLIPDataset  # noqa: E402

images, path, embeddings = sys.argv[1:]
side = 80
resize = Compose([ResizeLongest(side, fill=0), Lambda(lambda image: image.convert("RGB")), ToTensor()])
arguments = SimpleNamespace(train_ratio=1.0, train_ceph_root="")
dataset = COCORegionCLIPDataset(path, [resize, resize], images, arguments)
entries = []
for image, boxes in dataset:
    assert image.shape == (3, side, side)
    entries += [(int(box[4]), (box[:4] * side / 2).tolist()) for box in boxes if box[5] > 0]
norms = np.linalg.norm(np.load(embeddings), axis=1)
print(json.dumps({"entries": entries, "norms": norms.tolist()}))
