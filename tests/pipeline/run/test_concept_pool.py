"""A pool of concepts from all captions: by it boxes are called what their own captions do not say."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig, check, differences
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.run import concept_pool
from phrasebox.pipeline.run.concept_pool import parse_pool
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.read import make_reader
from tests.build.datasets import Json, manifest_of, rows_of
from tests.build.files import read_lines, write_lines
from tests.messages import expect_error
from tests.stages.model.saved import save_tower


def pool_of(path: Path, most: int = 10, **options: Any) -> dict[str, str]:
    config = check({"input": {"kind": "jsonl", "path": str(path)}}, RunConfig)
    reader = make_reader(config.input)
    return parse_pool(config, reader, reader.pieces(), most, **options)


def test_a_pool_has_the_phrases_of_most_images_with_their_head_nouns(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    texts = (["A red car and two dogs", "a red car on a road"], ["Two dogs and a house"], ["Two dogs"])
    write_lines(
        path, [{"image": f"{number}.jpg", "captions": list(text)} for number, text in enumerate(texts)]
    )
    pool = pool_of(path)
    assert next(iter(pool.items())) == ("two dogs", "dog"), "of three images"
    assert pool == {"two dogs": "dog", "house": "house", "red car": "car", "road": "road"}
    assert [*pool_of(path, most=2)] == ["two dogs", "house"]
    write_lines(path, [{"image": "0.jpg", "captions": ["and so on"]}])
    with expect_error(InputError, key="source.concepts"):
        pool_of(path)


def test_captions_that_cannot_be_used_count_for_nothing_and_progress_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "captions.jsonl"
    captions: list[list[str]] = [["  "], [], ["a dog"], ["A red car " * 2000], ["a cat"]]
    write_lines(
        path, [{"image": f"{number}.jpg", "captions": text} for number, text in enumerate(captions)]
    )
    monkeypatch.setattr(concept_pool, "ROWS", 2)
    steps: list[tuple[Any, ...]] = []
    assert pool_of(path, show_step=lambda *step: steps.append(step[1:])) == {"cat": "cat", "dog": "dog"}
    assert steps == [(), (2, 5), (4, 5), (5, 5)]
    write_lines(path, [{"image": "0.jpg", "captions": []}])
    with expect_error(InputError, key="source.concepts"):
        pool_of(path)


def test_settings_are_checked_before_captions_are_parsed(scenes_config: Json, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    lines = read_lines(Path(scenes_config["input"]["path"]))
    write_lines(path, [{"image": lines[0]["image"], "caption": "and so on"}])
    values = {
        **scenes_config,
        "input": {**scenes_config["input"], "path": str(path)},
        "source": {"kind": "grid", "concepts": "pool"},
        "output": {"path": str(tmp_path / "out")},
    }
    for regions, key in (
        ({"calibration": str(tmp_path / "none.json")}, "regions.calibration"),
        ({"refine": "sam"}, "regions.refine"),
    ):
        with pytest.raises(ConfigError) as caught:
            run(check({**values, "regions": regions}, RunConfig))
        assert caught.value.key == key
    with expect_error(InputError, key="source.concepts"):
        run(check(values, RunConfig))
    assert not (tmp_path / "out").exists()


def test_a_run_calls_boxes_by_the_pool_and_goes_on_with_the_same_one(
    scenes_config: Json, tmp_path: Path
) -> None:
    lines = read_lines(Path(scenes_config["input"]["path"]))
    path = tmp_path / "captions.jsonl"
    write_lines(path, lines[:5])
    values = {
        **scenes_config,
        "model": save_tower(tmp_path, "class token")[1].model_dump(mode="json"),
        "input": {**scenes_config["input"], "path": str(path)},
        "source": {"kind": "grid", "by": "roi", "concepts": "pool", "pool_size": 12},
        "output": {"path": str(tmp_path / "out")},
    }
    printed = StringIO()
    assert [*validate(run(check(values, RunConfig), Console(file=printed, width=200)))] == []
    assert "boxes may be called by a pool of 12 concepts\n" in printed.getvalue()
    manifest = manifest_of(tmp_path / "out")
    pool = manifest["config"]["source"]["pool"]
    assert manifest["concepts"] == len(pool) == 12
    rows = rows_of(tmp_path / "out")
    entries = [(row, entry) for row in rows for entry in row["annotations"]]
    unsaid = {entry["phrase"] for _, entry in entries if not any(entry["span"])}
    assert unsaid
    assert unsaid <= {*pool}
    for row, entry in entries:
        said = " ".join(row["captions"]).lower()
        assert any(entry["span"]) is (entry["phrase"] in said), entry["phrase"]
    write_lines(path, lines)
    run(check(values, RunConfig))
    grown = manifest_of(tmp_path / "out")
    assert (grown["counts"]["written"], grown["config"]["source"]["pool"]) == (len(lines), pool)


@pytest.mark.parametrize(("concepts", "count"), [("captions", None), ("pool", 2)])
def test_a_given_pool_is_not_parsed(concepts: str, count: int | None) -> None:
    source = {"kind": "grid", "concepts": concepts, "pool": {"red car": "car", "dog": "dog"}}
    config = check({"input": {"kind": "jsonl", "path": "a"}, "source": source}, RunConfig)
    assert config.source.pool_to_parse is None
    assert config.source.concept_count == count
    assert config.with_pool({"cat": "cat"}) == config


def test_a_refusal_names_some_concepts_and_not_all() -> None:
    pool = {f"concept {number}": "concept" for number in range(1000)}
    [line] = differences({"source": {"pool": pool}}, {"source": {"pool": None}})
    assert line.startswith("source.pool: {'concept 0': 'concept', ")
    assert line.endswith("… there, None now")
    assert len(line) < 600
