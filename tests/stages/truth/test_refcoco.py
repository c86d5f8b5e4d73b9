"""RefCOCO as ground truth, on a folder written by hand."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.contract.errors import InputError
from stages.contract.masks import rle_area_px
from stages.truth.ground_truth import TruthTarget
from stages.truth.refcoco import read_refcoco
from tests.build.cases import cases
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import expect_error

INSTANCES: Json = {
    "images": [
        {"id": n, "file_name": f"COCO_train2014_{n}.jpg", "width": 60, "height": 50} for n in (5, 6)
    ],
    "annotations": [
        {"id": 70, "image_id": 5, "bbox": [1, 2, 40, 40], "segmentation": [[1, 2, 41, 2, 41, 42, 1, 42]]},
        {"id": 71, "image_id": 5, "bbox": [0, 0, 9, 9], "segmentation": []},
        {"id": 72, "image_id": 5, "bbox": [3, 3, 4, 4], "iscrowd": 1},
        {"id": 73, "image_id": 6, "bbox": [3, 3, 0, 4]},
    ],
}


def ref(ann_id: int, *sentences: str, image_id: int = 5) -> Json:
    listed = [
        {"sent": sent, "raw": sent.upper(), "tokens": sent.split(), "sent_id": 1} for sent in sentences
    ]
    fields = {"ref_id": 1, "ann_id": ann_id, "image_id": image_id, "file_name": "COCO_train2014_5_70.jpg"}
    return {**fields, "split": "val", "sentences": listed}


def written(folder: Path, refs: Any, instances: Any = INSTANCES) -> Path:
    write_json(folder / "instances.json", instances)
    write_json(folder / "refs(unc).json", refs)
    return folder


def test_things_that_no_sentence_means_are_there_too(tmp_path: Path) -> None:
    instances = {**INSTANCES, "categories": [{"id": 1, "name": "Person"}]}
    instances["annotations"] = [{**thing, "category_id": 1} for thing in INSTANCES["annotations"]]
    truth = read_refcoco(written(tmp_path, [ref(70, "the man")], instances))
    assert truth.names == {"person"}
    boxes = [(thing.box_xywh_px, thing.category) for thing in truth.objects["COCO_train2014_5.jpg"]]
    assert boxes == [((1, 2, 40, 40), "person"), ((0, 0, 9, 9), "person")]
    assert truth.categories == frozenset(), "not everything that images show is annotated"


def test_a_target_for_every_sentence(tmp_path: Path) -> None:
    truth = read_refcoco(written(tmp_path, [ref(70, "The man in blue", "left guy"), ref(71, "?")]))
    image, other = (truth.images[f"COCO_train2014_{number}.jpg"] for number in (5, 6))
    assert (len(truth.images), other.targets, image.width_px, image.height_px) == (2, (), 60, 50)
    man, left, mark = image.targets
    assert man == TruthTarget(
        phrase="man in blue",
        boxes_xywh_px=((1, 2, 40, 40),),
        match="expression",
        mask=man.mask,
        caption="The man in blue",
        groups={"size": "medium", "objects": "2", "split": "val"},
    )
    assert man.mask is not None
    assert rle_area_px(man.mask) == 1600
    assert (left.phrase, left.caption, left.boxes_xywh_px) == ("left guy", "left guy", man.boxes_xywh_px)
    assert (mark.phrase, mark.caption, mark.mask) == ("", "?", None)
    assert mark.groups == {"size": "small", "objects": "2", "split": "val"}


def test_a_crowd_stays_and_a_box_without_area_goes(tmp_path: Path) -> None:
    truth = read_refcoco(written(tmp_path, [ref(72, "the crowd"), ref(73, "nothing", image_id=6)]))
    (crowd,) = truth.images["COCO_train2014_5.jpg"].targets
    assert (crowd.phrase, crowd.boxes_xywh_px) == ("crowd", ((3, 3, 4, 4),))
    assert truth.images["COCO_train2014_6.jpg"].targets == ()


def test_a_pickle_is_rejected_with_the_command_that_turns_it_into_json(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    written(folder, [])
    (folder / "refs(unc).json").rename(folder / "refs(unc).p")
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref(70, "left guy")]))
    with pytest.raises(InputError, match="pickles are not read, because loading one runs code") as caught:
        read_refcoco(folder)
    command = str(caught.value).partition("If you trust it: ")[2]
    assert "python -c" in command
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True)
    (target,) = read_refcoco(folder).images["COCO_train2014_5.jpg"].targets
    assert target.phrase == "left guy"


def test_no_refs_or_too_many_or_no_instances(tmp_path: Path) -> None:
    written(tmp_path, [])
    (tmp_path / "refs(google).json").write_text("[]")
    with expect_error(InputError):
        read_refcoco(tmp_path)
    (tmp_path / "refs(google).json").unlink()
    (tmp_path / "instances.json").unlink()
    with expect_error(InputError):
        read_refcoco(tmp_path)
    (tmp_path / "refs(unc).json").unlink()
    with expect_error(InputError):
        read_refcoco(tmp_path)


@cases(
    "refs",
    {
        "no list": {},
        "no object": [3],
        "no annotation": [{"image_id": 5}],
        "no image": [{"ann_id": 70}],
        "other annotation": [ref(99)],
        "other image": [ref(70, image_id=6)],
        "no sentences": [{"ann_id": 70, "image_id": 5}],
        "raw": [{**ref(70), "sentences": [{"raw": "a"}]}],
    },
)
def test_damaged_refs(tmp_path: Path, refs: Any) -> None:
    written(tmp_path, refs)
    with expect_error(InputError):
        read_refcoco(tmp_path)


def test_two_annotations_of_one_id(tmp_path: Path) -> None:
    twice = INSTANCES | {"annotations": INSTANCES["annotations"][:1] * 2}
    with expect_error(InputError):
        read_refcoco(written(tmp_path, [], twice))
