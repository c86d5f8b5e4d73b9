"""RefCOCO, RefCOCO+ and RefCOCOg as ground truth: each sentence means one annotation of an instances file.

    instances.json      COCO instances
    refs(unc).json      [{"ref_id": 0, "ann_id": 1719310, "image_id": 581857, "sentences": [{"sent": "man in blue"}]}]

REFER distributes the second one as a pickle, refs(unc).p. Pickles are not read, because loading
one runs code from it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from stages.contract.errors import InputError
from stages.phrases.filters import normalise
from stages.shared.json_files import read_json_as
from stages.truth.coco import (
    CocoImage,
    CocoObject,
    EntryId,
    Instances,
    check_different,
    objects_member,
    read_instances,
    size_member,
)
from stages.truth.ground_truth import GroundTruth, ImagesOnDemand, TruthImage, TruthTarget

INSTANCES: Final = "instances.json"

_TO_JSON: Final = (
    "python -c \"import json, pickle; json.dump(pickle.load(open('{0}.p', 'rb')), open('{0}.json', 'w'))\""
)


class Sentence(BaseModel):
    """An expression for one annotation."""

    sent: str


class Ref(BaseModel):
    """The expressions for an annotation of the instances file."""

    ann_id: EntryId
    image_id: EntryId
    split: str = ""
    sentences: list[Sentence]


def read_refcoco(folder: Path) -> GroundTruth:
    """Return the ground truth of a folder with `instances.json` and one `refs*.json`.

    A target is a sentence, and its object is the annotation of its ref, even a crowd. Refs to a
    box without width or height are left out. A sentence without letters and digits has the
    phrase "". Images without sentences have no targets.

    Groups: split (val, testA, ...) if refs have one, size (small, medium, large by COCO's
    limits) and objects (number of the image's annotations, "6+" for more than five).

    Raise InputError if a file is missing or damaged, or there is more than one `refs*.json`.
    """
    path = _refs_path(folder)
    instances = read_instances(folder / INSTANCES)
    check_different(
        instances.path,
        "annotations",
        "id",
        [item.annotation.id for item in instances.objects],
    )
    objects = {item.annotation.id: item for item in instances.objects}
    counts = {name: len(group) for name, group in instances.objects_by_name().items()}
    targets: dict[str, list[Callable[[], list[TruthTarget]]]] = {name: [] for name in instances.by_name}
    for number, ref in enumerate(read_json_as(path, list[Ref])):
        item = objects.get(ref.ann_id)
        if item is None:
            raise InputError(f"{path}: [{number}]: no annotation of {INSTANCES} has the id {ref.ann_id!r}")
        if instances.images.get(ref.image_id) is not item.image:
            problem = f"the annotation {ref.ann_id!r} is not of the image {ref.image_id!r}"
            raise InputError(f"{path}: [{number}]: {problem}")
        if item.has_area:
            name = item.image.file_name
            targets[name].append(partial(_targets, instances, item, ref, counts.get(name, 0)))

    def make(image: CocoImage) -> TruthImage:
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width,
            height_px=image.height,
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


def _targets(instances: Instances, item: CocoObject, ref: Ref, count: int) -> list[TruthTarget]:
    """Return a target for each sentence; the image has `count` objects in all."""
    boxes = (item.annotation.bbox,)
    mask = instances.mask_of([item])
    groups = {"size": size_member(mask, boxes), "objects": objects_member(count)}
    if ref.split:
        groups["split"] = ref.split
    return [
        TruthTarget(
            phrase=normalise(sentence.sent),
            boxes_xywh_px=boxes,
            match="expression",
            mask=mask,
            caption=sentence.sent,
            groups=groups,
        )
        for sentence in ref.sentences
    ]
