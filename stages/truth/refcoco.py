"""RefCOCO, RefCOCO+ and RefCOCOg as ground truth: sentences that each mean one annotation of an instances file.

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
    CocoThing,
    PictureEntry,
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

    A target is a sentence, and its thing is the annotation that its ref names, even a crowd. Refs to a box without
    width or height are left out. A sentence without letters and digits stays, with the phrase "". Images without
    sentences stay, without targets.

    Groups: split (val, testA, ...) where refs have one, size (small, medium, large by COCO's limits) and objects
    (how many annotations the image has, "6+" for more than five).

    Raise InputError if a file is missing or damaged, or there is more than one `refs*.json`.
    """
    path = _refs_path(folder)
    instances = read_instances(folder / INSTANCES)
    annotations = by_id((thing.entry for thing in instances.things), "annotation")
    things = {ann_id: thing for (ann_id, _), thing in zip(annotations, instances.things, strict=True)}
    targets: dict[str, list[Callable[[], list[TruthTarget]]]] = {name: [] for name in instances.by_name}
    for ref in entries(path, read_json(path), "refs"):
        ann_id = ref.id("ann_id")
        image_id = ref.id("image_id")
        thing = things.get(ann_id)
        if thing is None:
            raise ref.fault(f"no annotation of {INSTANCES} has the id {ann_id!r}")
        if instances.images.get(image_id) is not thing.image:
            raise ref.fault(f"the annotation {ann_id!r} is not of the image {image_id!r}")
        inner = entries(path, ref.values.get("sentences"), f"{ref.place}.sentences")
        sentences = [each.get("sent", "of text", lambda value: isinstance(value, str)) for each in inner]
        if thing.has_area:
            targets[thing.image.file_name].append(partial(_targets, thing, sentences, ref.values.get("split")))

    def made(image: PictureEntry) -> TruthImage:
        return TruthImage(
            file_name=image.file_name,
            width_px=image.width_px,
            height_px=image.height_px,
            targets=tuple(target for make in targets[image.file_name] for target in make()),
        )

    return GroundTruth(
        images=ImagesOnDemand(instances.by_name, made),
        things=instances.truth_things(),
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


def _targets(thing: CocoThing, sentences: list[str], split: object) -> list[TruthTarget]:
    boxes = (thing.box_xywh_px,)
    mask = mask_of([thing])
    groups = {"size": size_member(mask, boxes), "objects": objects_member(len(thing.image.things))}
    if isinstance(split, str):
        groups["split"] = split
    return [
        TruthTarget(
            phrase=normalise(said), boxes_xywh_px=boxes, match="expression", mask=mask, caption=said, groups=groups
        )
        for said in sentences
    ]
