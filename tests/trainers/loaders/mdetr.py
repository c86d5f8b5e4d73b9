"""MDETR's ModulatedDetection and MixedDetection: IMAGES JSON VOCABULARY -> entries of (word or phrase, box)."""

import json
import sys

import numpy as np
import torch
from datasets.coco import ModulatedDetection, make_coco_transforms
from datasets.mixed import MixedDetection
from transformers import RobertaTokenizerFast

images, path, vocabulary = sys.argv[1:]
tokenizer = RobertaTokenizerFast.from_pretrained(vocabulary)


def texts_of(target):
    tokens = tokenizer(target["caption"])["input_ids"]
    for positive in target["positive_map"]:
        assert positive.sum() > 0.99, "no token is positive"
        yield tokenizer.decode([tokens[place] for place in torch.where(positive > 0)[0]]).split("\n")


options = {"transforms": None, "return_masks": True, "return_tokens": True, "tokenizer": tokenizer}
answer = {}
dataset = ModulatedDetection(images, path, is_train=False, **options)
farthest = 0.0
for mixed, samples in ((False, dataset), (True, MixedDetection(images, images, path, **options))):
    entries = []
    for _, target in samples:
        for text, box, mask in zip(
            texts_of(target), target["boxes"].tolist(), target["masks"].numpy(), strict=True
        ):
            rows, columns = np.nonzero(mask)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            farthest = max(farthest, float(np.abs(np.subtract(edges, box)).max()))
            entries.append((" ".join(text), box))
    answer["mixed" if mixed else "modulated"] = entries
transforms = make_coco_transforms("train", cautious=True)
training = ModulatedDetection(
    images, path, is_train=True, **{**options, "transforms": transforms, "return_masks": False}
)
_, target = training[0]
answer["trained_boxes"] = target["boxes"].tolist()
print(json.dumps({**answer, "farthest_px": farthest}))
