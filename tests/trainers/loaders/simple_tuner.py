"""SimpleTuner's reader of boxes, and its batches: FOLDER LIMIT -> entities by image, boxes and which are valid."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from simpletuner.helpers.training.grounding.collate import GroundingCollate
from simpletuner.helpers.training.grounding.metadata import BboxMetadata

folder, limit = Path(sys.argv[1]), int(sys.argv[2])
images = sorted(path for path in folder.rglob("*") if path.suffix in (".png", ".jpg"))
entities = [
    [asdict(entity) for entity in BboxMetadata.from_file(str(path.with_suffix(".bbox")))] for path in images
]

# Texts are embedded by the model in training, and the paths of its caches are the trainer's state.
state, pathing = (
    ModuleType(f"simpletuner.helpers.{name}") for name in ("training.state_tracker", "utils.pathing")
)
state.StateTracker = SimpleNamespace(get_data_backend=lambda _: {"instance_data_dir": str(folder)})
pathing.normalize_data_path = lambda path, _: path
sys.modules |= {module.__name__: module for module in (state, pathing)}


class Texts:
    """In place of the cache of texts: it embeds a text as its length."""

    def compute_prompt_embeddings_with_model(self, prompt_records: list[dict]) -> dict:
        length = float(len(prompt_records[0]["prompt"]))
        return {"prompt_embeds": torch.full((1, 1, 768), length)}


examples = [
    {"image_path": str(path), "bbox_entities": listed, "target_size": (512, 512)}
    for path, listed in zip(images, entities, strict=True)
]
batch = GroundingCollate(limit, 8).build_batch(examples, "boxes", Texts())
answer = {
    "entities": [[[entity["label"], entity["bbox"]] for entity in listed] for listed in entities],
    "boxes": batch.boxes.tolist(),
    "valid": batch.validity_mask.tolist(),
    "lengths": batch.text_embeds[..., 0].tolist(),
    "cells": batch.spatial_masks.sum(dim=(2, 3)).tolist(),
}
print()
print(json.dumps(answer))
