"""RefCOCO, RefCOCO+ and RefCOCOg as ground truth: each sentence means one annotation of an instances file.

    instances.json      COCO instances
    refs(unc).json      [{"ref_id": 0, "ann_id": 1719310, "image_id": 581857, "sentences": [{"sent": "man in blue"}]}]

REFER distributes the second one as a pickle, refs(unc).p. Pickles are not read, because loading one runs code from it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from stages.contract.errors import InputError
from stages.phrases.filters import normalise
from stages.truth.coco import (
    CocoObject,
    ImageEntry,
    by_id,
    entries,
    mask_of,
    objects_member,
    read_instances,
    read_json,
    size_member,
)
from stages.truth.ground_truth import GroundTruth, ImagesOnDemand, TruthImage, TruthTarget

INSTANCES: Final = "instances.json"

_TO_JSON: Final = (
    """python -c "import json, pickle; json.dump(pickle.load(open('{0}.p', 'rb')), open('{0}.json', 'w'))\""""
)


def read_refcoco(folder: Path) -> GroundTruth:
    """Return the ground truth of a folder with `instances.json` and one `refs*.json`.

    A target is a sentence, and its object is the annotation of its ref, even a crowd. Refs to a box without width or
    height are left out. A sentence without letters and digits has the phrase "". Images without sentences have no
    targets.

    Groups: split (val, testA, ...) if refs have one, size (small, medium, large by COCO's limits) and objects (number
    of the image's annotations, "6+" for more than five).

    Raise InputError if a file is missing or damaged, or there is more than one `refs*.json`.
    """
    path = _refs_path(folder)
    instances = read_instances(folder / INSTANCES)
    annotations = by_id((item.entry for item in instances.objects), "annotation")
    objects = {ann_id: item for (ann_id, _), item in zip(annotations, instances.objects, strict=True)}
    targets: dict[str, list[Callable[[], list[TruthTarget]]]] = {name: [] for name in instances.by_name}
    for ref in entries(path, read_json(path), "refs"):
        ann_id = ref.id("ann_id")
        image_id = ref.id("image_id")
        item = objects.get(ann_id)
        if item is None:
            raise ref.fault(f"no annotation of {INSTANCES} has the id {ann_id!r}")
        if instances.images.get(image_id) is not item.image:
            raise ref.fault(f"the annotation {ann_id!r} is not of the image {image_id!r}")
        members = entries(path, ref.values.get("sentences"), f"{ref.place}.sentences")
        sentences = [member.get("sent", "of text", lambda value: isinstance(value, str)) for member in members]
        if item.has_area:
            targets[item.image.file_name].append(partial(_targets, item, sentences, ref.values.get("split")))

    def make(image: ImageEntry) -> TruthImage:
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width_px,
            height_px=image.height_px,
            targets=tuple(target for make_targets in targets[image.file_name] for target in make_targets()),
        )

    return GroundTruth(
        images=ImagesOnDemand(instances.by_name, make),
        objects=instances.truth_objects(),
        names=frozenset(instances.names.values()),
    )


def _refs_path(folder: Path) -> Path:
    paths = sorted(folder.glob("refs*.json"))
    if len(paths) == 1:
        return paths[0]
    if paths:
        names = ", ".join(path.name for path in paths)
        raise InputError(f"{folder}: expected one refs*.json, found {names}: give each a folder of its own")
    pickles = sorted(folder.glob("refs*.p"))
    if pickles:
        raise InputError(
            f"{pickles[0]}: pickles are not read, because loading one runs code from it. "
            f"If you trust it: cd {shlex.quote(str(folder))} && {_TO_JSON.format(pickles[0].stem)}"
        )
    raise InputError(f"{folder}: expected a refs*.json beside {INSTANCES}, found none")


def _targets(item: CocoObject, sentences: list[str], split: object) -> list[TruthTarget]:
    boxes = (item.box_xywh_px,)
    mask = mask_of([item])
    groups = {"size": size_member(mask, boxes), "objects": objects_member(len(item.image.objects))}
    if isinstance(split, str):
        groups["split"] = split
    return [
        TruthTarget(
            phrase=normalise(text), boxes_xywh_px=boxes, match="expression", mask=mask, caption=text, groups=groups
        )
        for text in sentences
    ]
