"""Regions once for each thing: one box, several phrases."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.statistics import statistics
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.export.base import merge_by_object
from phrasebox.pipeline.export.export import JOINED_MENTIONS
from phrasebox.pipeline.export.yolo import SLASHES
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.records import Record
from tests.build.datasets import Json
from tests.build.files import read_json
from tests.messages import expect_error
from tests.pipeline.export.datasets import Maker, demo_fingerprint, exported, finished
from tests.pipeline.export.read_back import READ_BACK

CAPTIONS = ("a boy with a dog", "A child and two dogs", "the boy runs")

MENTIONS: tuple[tuple[str, int, int | None, float], ...] = (
    ("boy", 0, 0, 0.5),
    ("dog", 0, 1, 0.25),
    ("child", 1, 0, 0.75),
    ("two dogs", 1, 2, 0.5),
    ("boy", 2, 0, 0.625),
)
"""Phrase, caption, group, score."""

BOY = (2, 2, 10, 20)
PLACES = {0: [BOY], 1: [(20, 2, 5, 5)], 2: [(20, 2, 5, 5), (30, 2, 6, 6)]}


def record(*, grouped: bool = True) -> Record:
    entries = [
        (phrase, place, caption, {"score": score, "group": group if grouped else None})
        for phrase, caption, group, score in MENTIONS
        for place in PLACES[group or 0]
    ]
    return Maker().record("a", CAPTIONS, *entries, file_name="1.jpg")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    folder = tmp_path_factory.mktemp("things") / "dataset"
    return finished(folder, [record()], fingerprint=demo_fingerprint())


def instances(dataset: Path, out: Path, **request: Any) -> Json:
    """The COCO file of an export by things."""
    exported("coco", dataset, out, per="group", **request)
    return read_json(out / "annotations" / "instances_train.json")


BY_OBJECT = ("coco", "hf", "yolo", "clipself", "fiftyone", "chat", "label-studio", "bbox")
"""Formats that by default have each object once; `odvg` with form=detection and `mdetr` for Ultralytics too."""

SETTINGS = {"saco": {"exhaustive": "all"}, "chat": {"seed": 8}}  # by this seed the boy is called boy


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_format_has_each_region_of_each_thing_once_or_rejects_things(
    name: str, dataset: Path, tmp_path
) -> None:
    settings = SETTINGS.get(name)
    _, report = exported(name, dataset, tmp_path / "usual", settings)
    usual = 4 if name in BY_OBJECT else 6
    mentions = 6 - usual
    if name == "saco":
        usual = 5
    assert (report.regions.total(), report.notes[JOINED_MENTIONS]) == (usual, mentions)
    if not EXPORTERS[name].takes_groups:
        with expect_error(ConfigError, key="per"):
            exported(name, dataset, tmp_path / "out", per="group")
        assert not (tmp_path / "out").exists()
        return
    _, report = exported(name, dataset, tmp_path / "phrases", per="phrase")
    assert (report.regions, report.notes[JOINED_MENTIONS]) == ({"train": 6}, 0)
    out, report = exported(name, dataset, tmp_path / "out", settings, per="group")
    assert (report.regions, report.notes[JOINED_MENTIONS]) == ({"train": 4}, 2)
    read = READ_BACK[name]
    (regions,) = read.samples(out, "train")
    places = [PLACES[0][0], PLACES[1][0], *PLACES[2]]
    phrases = ["boy", "dog", "two dogs", "two dogs"]
    labels = {"head": ["boy", "dog", "dog", "dog"], "words": ["boy child boy", *phrases[1:]]}
    names = {"phrase": phrases, **labels}[read.label]
    wanted = [((x, y, x + w, y + h), label) for (x, y, w, h), label in zip(places, names, strict=True)]
    assert sorted((box, label) for box, label, _ in regions) == sorted(wanted)


def test_mdetr_has_one_entry_with_all_captions(dataset: Path, tmp_path: Path) -> None:
    exported("mdetr", dataset, tmp_path / "out", per="group")
    content = read_json(tmp_path / "out" / "train.json")
    (image,) = content["images"]
    assert image["caption"] == "a boy with a dog\nA child and two dogs\nthe boy runs"
    assert image["tokens_positive_eval"] == [[[2, 5], [19, 24], [42, 45]], [[13, 16]], [[29, 37]]]
    assert content["annotations"][0]["tokens_positive"] == [[2, 5], [19, 24], [42, 45]]


def test_mdetr_has_a_span_for_each_class_of_ultralytics(tmp_path: Path) -> None:
    """Its dataset makes the text of a class of all words of all spans; a determiner would make another class."""
    captions = ("a boy", "The young Child", "a kid")
    mentions = [("a boy", 0, BOY, 0, 0.5), ("The young Child", 1, BOY, 0, 0.75), ("a kid", 2, BOY, 0, 0.25)]
    row = Maker().grouped("a", captions, *mentions)
    dataset = finished(tmp_path / "dataset", [row])
    out, _ = exported("mdetr", dataset, tmp_path / "out", {"trainer": "ultralytics"})
    content = read_json(out / "train.json")
    (entry,) = content["annotations"]
    ((start, end),) = entry["tokens_positive"]
    assert content["images"][0]["caption"][start:end] == "young Child"
    assert content["images"][0]["tokens_positive_eval"] == [entry["tokens_positive"]]


def test_yolo_names_synonyms(tmp_path: Path) -> None:
    """Each name is that of one class; a slash within a name separates nothing, and no class is a synonym."""
    make = Maker()

    def row(name: str, *mentions: str) -> Record:
        regions = [(mention, index, BOY, 0, 0.5) for index, mention in enumerate(mentions)]
        return make.grouped(name, tuple(f"a {mention}" for mention in mentions), *regions)

    rows = [
        row("a", "boy", "kid"),
        row("b", "girl", "kid"),
        row("c", "girl", "kid", "she/her"),
        row("d", "dog", "boy"),
    ]
    dataset = finished(tmp_path / "dataset", [*rows, row("e", "and/or")])
    settings = {"classes": "phrase", "synonyms": True}
    out, report = exported("yolo", dataset, tmp_path / "out", settings)
    names = yaml.safe_load((out / "data.yaml").read_text())["names"]
    assert [*names.values()] == ["and or", "boy", "dog", "girl/kid/she her"]
    assert report.notes[SLASHES] == 2
    out, _ = exported("yolo", dataset, tmp_path / "plain", {"classes": "phrase"})
    assert "kid" not in (out / "data.yaml").read_text()
    with expect_error(ConfigError, key="per"):
        exported("yolo", dataset, tmp_path / "mentions", settings, per="phrase")


def test_label_studio_offers_every_phrase(dataset: Path, tmp_path: Path) -> None:
    out, _ = exported(
        "label-studio", dataset, tmp_path / "out", {"address": "https://host/a b/"}, min_score=0.6
    )
    (task,) = read_json(out / "train.json")
    assert task["data"]["image"] == "https://host/a b/1.jpg"
    assert [entry["value"] for entry in task["data"]["phrases"]] == ["child", "boy", "dog", "two dogs"]
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.75
    (result,) = prediction["result"]
    assert result["value"]["rectanglelabels"] == ["child", "boy"]
    assert "$phrases" in (out / "label_config.xml").read_text()


def test_coco_has_all_phrases_of_a_thing_that_are_chosen(dataset: Path, tmp_path: Path) -> None:
    content = instances(dataset, tmp_path / "all")
    boy = content["annotations"][0]
    caption = content["images"][0]["caption"]
    assert [caption[start:end] for start, end in boy["tokens_positive"]] == ["boy", "child", "boy"]
    phrases = [(each["phrase"], each["caption_index"]) for each in boy["phrases"]]
    assert phrases == [("boy", 0), ("child", 1), ("boy", 2)]
    assert (boy["phrase"], boy["caption_index"], boy["group"], boy["score"]) == ("boy", 2, 0, 0.75)
    content = instances(dataset, tmp_path / "chosen", where="phrase <> 'child' AND score > 0.3")
    assert [len(entry["phrases"]) for entry in content["annotations"]] == [2, 1, 1]


def test_in_datasets_of_no_groups_every_phrase_of_a_caption_is_a_thing(tmp_path: Path) -> None:
    old = finished(tmp_path / "old", [record(grouped=False)])
    assert len(instances(old, tmp_path / "out")["annotations"]) == 6


def test_statistics_count_things(dataset: Path) -> None:
    with closing(Index(open_dataset(dataset), {})) as index:
        index.build()
        assert statistics(index)["objects_per_image"]["counts"] == [0, 0, 0, 1]


def test_where_each_phrase_has_its_own_regions_the_best_lead() -> None:
    def entry(caption: int, score: float, number: int) -> Json:
        named = {"phrase": "dog", "head": "dog", "caption_index": caption, "span": [0, 3]}
        return {"id": number, **named, "score": score, "group": 0}

    merged = merge_by_object([entry(0, 0.3, 1), entry(1, 0.2, 2), entry(1, 0.9, 3), entry(2, 0.9, 4)])
    assert [one["id"] for one in merged] == [2, 3]
    assert [len(one["named"]) for one in merged] == [3, 3]
