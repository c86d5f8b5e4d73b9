"""What stands beside an image for layout-to-image training."""

import json
from pathlib import Path

from phrasebox.pipeline.export.export import WITHOUT_REGIONS
from tests.build.files import read_lines
from tests.build.records import HEIGHT, WIDTH
from tests.pipeline.export.datasets import Maker, exported, finished

CAPTIONS = ("A red  car\nbeside \u2028 a dog ", " ", "the automobile")
CAR = (4, 2, 10, 20)
DOG = (20, 4, 8, 7)


def write_dataset(folder: Path) -> Path:
    """A car with two names, a dog of a better score, a cat that is absent; and an image without regions."""
    make = Maker()
    car = {"group": 0, "score": 0.5}
    entries = [
        ("red  car", CAR, 0, car),
        ("automobile", CAR, 2, {**car, "score": 0.25}),
        ("dog", DOG, 0, {"group": 1, "score": 0.75}),
    ]
    absent = [("beside", 0)]
    rows = [
        make.record("a", CAPTIONS, *entries, absent=absent, file_name="a.b/c.d.jpg"),
        make.record("b", "no object", file_name="b.jpg"),
    ]
    return finished(folder, rows)


def test_objects_once_best_first_and_captions_line_by_line(tmp_path: Path) -> None:
    """Absent phrases have no line. The images lie beside, in their folders."""
    out, report = exported("bbox", write_dataset(tmp_path / "dataset"), tmp_path / "out")
    x, y, w, h = CAR
    lines = read_lines(out / "train/a.b/c.d.bbox")
    assert [line["label"] for line in lines] == ["dog", "red car"]
    assert lines[1]["bbox"] == [
        x / WIDTH,
        round(y / HEIGHT, 6),
        (x + w) / WIDTH,
        round((y + h) / HEIGHT, 6),
    ]
    texts = (out / "train/a.b/c.d.txt").read_text("utf-8").split("\n")
    assert texts == ["A red car beside a dog", "the automobile", ""]
    assert (out / "train/a.b/c.d.jpg").is_file()
    assert report.left_out == {WITHOUT_REGIONS: 1}


def test_an_image_without_boxes_has_empty_lines(tmp_path: Path) -> None:
    """Then the trainer detects no objects of its own in it."""
    dataset = write_dataset(tmp_path / "dataset")
    out, _ = exported("bbox", dataset, tmp_path / "out", keep_empty=True)
    assert (out / "train/b.bbox").read_text() == ""
    assert (out / "train/b.txt").read_text() == "no object\n"


def test_large_boxes_are_left_out(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    out, _ = exported("bbox", dataset, tmp_path / "out", max_area=0.1)
    assert [line["label"] for line in read_lines(out / "train/a.b/c.d.bbox")] == ["dog"]


def test_the_next_step_is_an_entry_of_the_trainer_s_configuration(tmp_path: Path) -> None:
    out, report = exported("bbox", write_dataset(tmp_path / "dataset"), tmp_path / "out")
    text = report.next_step
    entry = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert entry["instance_data_dir"] == f"{out}/train"
    assert entry["grounding"] == {"enabled": True}
