"""Tables of every kind in, the same kind out; columns of images in every form; faults as rows."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from phrasebox.pipeline.annotate.annotator import Annotator
from phrasebox.stages.contract.errors import ConfigError, InputError
from tests.build.datasets import Json
from tests.messages import expect_error


def columns_of(rows: list[Json]) -> Json:
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMS: dict[str, tuple[Callable[[list[Json]], Any], Callable[[Any], list[Json]]]] = {
    "rows": (list, list),
    "a table": (pa.Table.from_pylist, lambda table: table.to_pylist()),
    "a batch": (pa.RecordBatch.from_pylist, lambda batch: batch.to_pylist()),
    "columns": (
        columns_of,
        lambda columns: [
            dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
        ],
    ),
    "a frame": (pd.DataFrame, lambda frame: frame.to_dict("records")),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_comes_back_in_its_form(annotator: Annotator, embedded: list[Json], form: str) -> None:
    make, read = FORMS[form]
    table = make(embedded[:3])
    annotated = annotator(table)
    assert type(annotated) is type(table)
    assert read(annotated) == annotator(embedded[:3])
    assert [{name: row[name] for name in embedded[0]} for row in read(annotated)] == embedded[:3]
    assert read(table) == embedded[:3], "it is only read"


def test_the_index_of_a_frame_stays(annotator: Annotator, rows: list[Json]) -> None:
    frame = pd.DataFrame(rows[:2], index=["b", "a"])
    annotated = annotator(frame)
    assert list(annotated.index) == ["b", "a"]
    assert list(frame.columns) == list(rows[0])


@pytest.mark.parametrize(
    "make", [list, lambda _: {}, lambda _: {"image": [], "caption": []}, lambda _: pd.DataFrame()]
)
def test_a_table_without_rows_comes_back(annotator: Annotator, make: Any) -> None:
    assert len(annotator(make(()))) in (0, len(Annotator.schema), len(Annotator.schema) + 2)
    table = annotator(pa.schema([("image", pa.string()), ("caption", pa.string())]).empty_table())
    assert table.schema.names == ["image", "caption", *Annotator.schema.names]


def test_images_come_in_every_form(
    annotator: Annotator, rows: list[Json], embedded: list[Json], scenes_folder: Path
) -> None:
    content = embedded[0]["image"]["bytes"]
    picture = Image.open(io.BytesIO(content))
    forms = {
        "a path": rows[0]["image"],
        "an absolute path": str(scenes_folder / "images" / rows[0]["image"]),
        "bytes": content,
        "a struct": {"bytes": content, "path": None},
        "a struct of a path": {"bytes": None, "path": rows[0]["image"]},
        "a picture": picture,
        "an array": np.asarray(picture.convert("RGB")),
    }
    expected = annotator(rows[:1])[0]["annotations"]
    assert expected
    for form, image in forms.items():
        (row,) = annotator([{**rows[0], "image": image}])
        assert row["error"] is None, form
        boxes = [entry["bbox"] for entry in row["annotations"]]
        assert boxes == [pytest.approx(entry["bbox"], abs=1) for entry in expected], form


def test_rows_do_not_depend_on_their_batch(annotator: Annotator, rows: list[Json]) -> None:
    """Nor do their ids, where the table has none."""
    nameless = [{"image": row["image"], "text": row["caption"]} for row in rows[:3]]
    for name, table in (("id", rows[:3]), ("sample_id", nameless)):
        annotate = annotator if name == "id" else Annotator(run=None, **_settings(annotator))
        together = annotate(table)
        apart = [annotate([row])[0] for row in reversed(table)][::-1]
        for row, other in zip(together, apart, strict=True):
            assert [entry["id"] for entry in row["annotations"]] == [
                entry["id"] for entry in other["annotations"]
            ]
            assert [entry["bbox"] for entry in row["annotations"]] == [
                pytest.approx(entry["bbox"], abs=1) for entry in other["annotations"]
            ]
        ids = [entry["id"] for row in together for entry in row["annotations"]]
        assert len(set(ids)) == len(ids) > 2


def _settings(annotator: Annotator) -> Json:
    root = annotator._config.input.image_root
    return {"model": "demo", "input": {"image_root": root}, "regions": {"absent_share": 0.05}}


def test_a_fault_is_a_row(annotator: Annotator, rows: list[Json]) -> None:
    good = rows[0]
    faults = {
        "missing_image": {"image": None},
        "bad_location": {"image": "../captions.jsonl"},
        "bad_image": {"image": b"GIF"},
        "bad_row": {"image": 3.5},
        "bad_caption": {"caption": 7},
        "no_caption": {"caption": None},
    }
    table = [row for change in faults.values() for row in (good, {**good, **change})]
    annotated = annotator(table)
    assert [row["error"] for row in annotated[1::2]] == list(faults)
    assert [row["annotations"] for row in annotated[1::2]] == [[]] * len(faults)
    assert all(good["id"] in row["error_detail"] for row in annotated[1::2])
    sound = annotated[::2]
    assert [row["error"] for row in sound] == [None] * len(faults)
    assert all(len(row["annotations"]) == len(sound[0]["annotations"]) > 0 for row in sound)
    gone = annotator([{**good, "image": "gone.jpg"}])
    assert (gone[0]["error"], gone[0]["annotations"]) == ("missing_image", [])
    nulls = annotator(pa.table({"image": [good["image"]], "caption": pa.nulls(1), "id": ["a"]}))
    assert nulls["error"].to_pylist() == ["no_caption"]
    failed = annotator(
        [{**good, "key": "1", "status": status} for status in ("success", "failed_to_download")]
    )
    assert [row["error"] for row in failed] == [None, "failed_download"]


@pytest.mark.parametrize("columns", [{}, {"phrase": "names"}])
def test_phrases_in_the_place_of_captions(
    make_annotator: Callable[..., Annotator], rows: list[Json], inline_dataset: Path, columns: Json
) -> None:
    """Each is judged by itself, as `Locator` does."""
    from phrasebox.pipeline.locator import Locator

    annotate = make_annotator({"absent_share": "auto"}, input=columns)
    name = columns.get("phrase", "phrases")
    caption = rows[0]["caption"]
    phrases = ["a zebra", *caption.removeprefix("a picture of ").replace(" and ", ", ").split(", ")]
    table = [
        {"image": rows[0]["image"], name: value, "id": "a"}
        for value in (phrases, phrases[1], [], ["dog", " "])
    ]
    answers = annotate(table)
    assert [row["error"] for row in answers] == [None, None, "no_caption", "no_caption"]
    root = annotate._config.input.image_root
    located = Locator("demo")(f"{root}/{rows[0]['image']}", phrases)
    first = answers[0]
    assert first["caption_score"] == []
    assert first["annotations"]
    places = [entry["caption_index"] for entry in first["annotations"]]
    assert places == located.phrase_indices.tolist()
    assert [entry["score"] for entry in first["annotations"]] == pytest.approx(located.scores, abs=1e-3)
    assert 0 in [entry["caption_index"] for entry in first["absent"]]
    for entry in (*first["annotations"], *first["absent"]):
        assert entry["span"] == [0, len(phrases[entry["caption_index"]])]
    alone = {entry["phrase"] for key in ("annotations", "absent") for entry in answers[1][key]}
    assert len(alone) == 1


@pytest.mark.parametrize(
    "table",
    [
        "photos/",
        [{"image": "1.jpg", "caption": "a dog"}, 3],
        {"image": ["1.jpg"], "caption": []},
        [{"picture": "1.jpg", "caption": "a dog"}],
        [{"image": "1.jpg", "words": "a dog"}],
        [{"image": "1.jpg", "caption": "a dog", "error": None, "absent": []}],
    ],
    ids=["a folder", "other rows", "lengths", "no image", "no caption", "added before"],
)
def test_a_table_that_is_none_is_refused(table: Any) -> None:
    with expect_error(InputError):
        Annotator("demo")(table)


def test_settings_are_checked_at_once() -> None:
    with expect_error(ConfigError, key="model.name"):
        Annotator()
    with expect_error(ConfigError, key="regions.absent"):
        Annotator("demo", regions={"absent": 0.05})
    with expect_error(ConfigError, key="input.path"):
        Annotator("demo", input={"path": "captions.jsonl"})
    with expect_error(InputError, key="input.image_root"):
        Annotator("demo", input={"image_root": "none/"})([{"image": "1.jpg", "caption": "a dog"}])
    with expect_error(ConfigError, key="input.phrase"):
        Annotator("demo", input={"phrase": "names", "caption": "text"})(
            [{"image": "1.jpg", "text": "a dog"}]
        )
