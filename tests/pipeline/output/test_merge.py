"""Parts of an input that were run on their own become the dataset that one run makes."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.marks import EARLIER_FILE, append_marks, read_marks
from phrasebox.pipeline.dataset.origin import ImageSource
from phrasebox.pipeline.dataset.reviews import REVIEWS_FILE, RegionKey, Review, append_review, read_reviews
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.output import ids
from phrasebox.pipeline.output.merge import merge
from phrasebox.pipeline.output.previous_run import read_previous_run
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import InputError, ResumeError
from tests.build.cases import cases
from tests.build.datasets import Json, change_manifest, list_shards, shards_of
from tests.build.files import write_json
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import printed
from tests.pipeline.light import assert_alike, rows_of


def part(number: str | None, scenes_config: Json, out: Path, **sections: Any) -> Path:
    source = {**scenes_config["input"], "piece_size": 2, "part": number}
    values = {
        **scenes_config,
        "input": source,
        "output": {"path": str(out), "rows_per_file": 2},
        **sections,
    }
    return Path(str(run(RunConfig.model_validate(values))))


@pytest.fixture(scope="module")
def parts(scenes_config: Json, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    return [part(f"{number}/3", scenes_config, folder / str(number)) for number in (1, 2, 3)]


def test_the_parts_are_the_rows_of_one_run(parts: list[Path], inline_dataset: Path, tmp_path: Path) -> None:
    assert merge(parts[::-1], tmp_path / "out") is not None
    assert_alike(rows_of(tmp_path / "out"), rows_of(inline_dataset))
    assert list(validate(tmp_path / "out")) == []
    whole = open_dataset(inline_dataset)
    merged = open_dataset(tmp_path / "out")
    assert merged.manifest["run"]["environments"] == whole.manifest["run"]["environments"]
    for name in ("model", "model_fingerprint", "calibration", "scores"):
        assert merged.manifest[name] == whole.manifest[name]
    assert {**merged.manifest["counts"], "files": 0} == {**whole.manifest["counts"], "files": 0}
    assert is_own(merged.manifest)
    assert merge(parts[::-1], tmp_path / "out") is None, "a second time there is nothing to do"


def test_answers_and_corrections_go_with_the_regions(parts: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(part, tmp_path / part.name)) for part in parts]
    keys = []
    for part, answer in zip(copies, ({"answer": "right"}, {"action": "delete"}), strict=False):
        row = next(row for row in open_dataset(part).rows() if row["annotations"])
        keys.append(RegionKey.of(row["annotations"][0]))
        append_review(part, Review(**keys[-1]._asdict(), reviewer="ann", **answer))
    merge(copies, tmp_path / "out")
    reviews = read_reviews(tmp_path / "out")
    assert (reviews.majority_answers(), [*reviews.corrections]) == ({keys[0]: "right"}, keys[1:])
    (copies[2] / REVIEWS_FILE).symlink_to(copies[0] / REVIEWS_FILE)
    with expect_error(InputError):
        merge(copies, tmp_path / "linked")
    assert not (tmp_path / "linked").exists()


def test_marks_go_with_the_samples_and_the_latest_counts(parts: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(part, tmp_path / part.name)) for part in parts]
    first, second, third = ([row["sample_id"] for row in open_dataset(part).rows()] for part in copies)
    write_json(copies[0] / EARLIER_FILE, {first[0]: "good", first[1]: "bad"})  # by an earlier version
    append_marks(copies[0], {first[0]: "", first[2]: "good", "in both": "bad"})
    append_marks(copies[2], {third[0]: "good", "in both": "good"})
    append_marks(copies[1], {second[0]: "bad", "in both": ""})
    merge(copies, tmp_path / "out")
    marks = {first[1]: "bad", first[2]: "good", second[0]: "bad", third[0]: "good"}
    assert read_marks(tmp_path / "out") == marks
    good = open_dataset(tmp_path / "out").regions("mark = 'good'", ["sample_id"])["sample_id"].to_pylist()
    assert {*good} == {first[2], third[0]}
    write_json(copies[2] / EARLIER_FILE, {"x": "great"})
    with expect_error(InputError):
        merge(copies, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_parts_of_machines_with_other_libraries_are_merged_and_all_are_listed(
    parts: list[Path], tmp_path: Path
) -> None:
    copies = [Path(shutil.copytree(part, tmp_path / part.name)) for part in parts]
    (here,) = open_dataset(copies[0]).manifest["run"]["environments"]
    other = {**here, "torch": "99.0"}
    change_manifest(copies[1], run={**open_dataset(copies[1]).manifest["run"], "environments": [other]})
    merge(copies, tmp_path / "out")
    assert open_dataset(tmp_path / "out").manifest["run"]["environments"] == [here, other]


def unfinished(folder: Path) -> None:
    (folder / "dataset.json").unlink()
    (folder / ".phrasebox").mkdir(exist_ok=True)
    (folder / ".phrasebox/run.json").write_text('{"config": {}}')


def stored(folder: Path, **values: Any) -> None:
    """Other values in what the run in a folder depends on."""
    change_manifest(folder, lambda manifest: manifest["run"].update(values))


def in_config(folder: Path, **values: Any) -> None:
    """Other settings of the input in a folder's configuration."""
    change_manifest(folder, lambda manifest: manifest["config"]["input"].update(values))


OUTSIDE = {"what": "They are dark", "in_regions": True}


@cases(
    ("change", "chosen"),
    {
        "missing": (None, [1, 3]),
        "twice": (None, [1, 2, 2, 3]),
        "unfinished": (unfinished, [1, 2, 3]),
        "input": (lambda folder: stored(folder, input_fingerprint="other"), [1, 2, 3]),
        "settings": (lambda folder: stored(folder, segmenter="other"), [1, 2, 3]),
        "domain": (lambda folder: stored(folder, outside_domain=OUTSIDE), [1, 2, 3]),
        "split": (lambda folder: in_config(folder, part="2/4"), [1, 2, 3]),
        "whole": (lambda folder: in_config(folder, part=None), [1, 2, 3]),
        "damaged": (lambda folder: next((folder / "data").iterdir()).write_bytes(b"PAR1"), [1, 2, 3]),
    },
)
def test_what_is_no_whole_is_rejected_by_name(change, chosen, parts, tmp_path) -> None:
    copies = [Path(shutil.copytree(one, tmp_path / one.name)) for one in parts]
    if change is not None:
        change(copies[1])
    with expect_error(InputError):
        merge([copies[number - 1] for number in chosen], tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()


def test_from_another_folder_with_an_empty_part_and_a_rule_that_no_calibration_fits(
    scenes_config, scenes_folder, tmp_path, monkeypatch
) -> None:
    """The command of the whole input then has nothing to do, and images are found from anywhere."""
    monkeypatch.chdir(scenes_folder.parent)
    source = {**scenes_config["input"], "path": f"{scenes_folder.name}/captions.jsonl", "limit": 2}
    config = {**scenes_config, "input": {**source, "image_root": f"{scenes_folder.name}/images"}}
    wanted = {"regions": {"calibration": "none", "rule": "fitted"}}
    made = [part(f"{number}/3", config, tmp_path / str(number), **wanted) for number in (2, 1, 3)]
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    merge(made, out)
    assert ImageSource(open_dataset(out)).load(rows_of(out)[0])
    monkeypatch.chdir(scenes_folder.parent)
    before = (out / "dataset.json").read_bytes()
    part(None, config, out, **wanted)
    assert (out / "dataset.json").read_bytes() == before


def test_parts_of_several_machines(parts: list[Path], tmp_path: Path) -> None:
    """What each part computes from the first images differs in the last digits, and clusters do not compare them."""
    copies = [Path(shutil.copytree(one, tmp_path / one.name)) for one in parts]
    for number, copy in enumerate(copies):
        (copy / "presence.json").write_text(f"0.{number}")
        outside = {"what": f"They are 1.{number} deviations away", "in_regions": False}
        presence = sha256(f"0.{number}".encode()).hexdigest()
        stored(copy, presence=presence, outside_domain=None if number == 1 else outside)
    merge(copies, tmp_path / "out")
    run_of = open_dataset(tmp_path / "out").manifest["run"]
    assert sha256((tmp_path / "out/presence.json").read_bytes()).hexdigest() == run_of["presence"]
    assert run_of["outside_domain"]["what"] == "They are 1.0 deviations away"


def test_ids_that_parts_share_are_set_apart_and_the_parts_stay(
    parts: list[Path], inline_dataset: Path, tmp_path: Path
) -> None:
    copies = [Path(shutil.copytree(one, tmp_path / one.name)) for one in parts]
    shard, *_ = shards_of(copies[1])
    name = pq.read_table(shard)["sample_id"][0].as_py()
    ids._rewrite(shard, ids._Ids(images={name: rows_of(copies[0])[0]["id"]}), lambda _: None)
    list_shards(copies[1])
    before = {path: path.read_bytes() for one in copies for path in one.rglob("*.parquet")}
    merge(copies, tmp_path / "out")
    assert_alike(rows_of(tmp_path / "out"), rows_of(inline_dataset))
    assert list(validate(tmp_path / "out")) == []
    assert {path: path.read_bytes() for path in before} == before, "though their shards were linked"


def test_a_damaged_shard_of_a_part_is_not_merged(parts: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(one, tmp_path / one.name)) for one in parts]
    shard, *_ = shards_of(copies[1])
    content = bytearray(shard.read_bytes())
    content[60] ^= 1
    shard.write_bytes(content)
    with expect_error(InputError):
        merge(copies, tmp_path / "out")
    assert not (tmp_path / "out/dataset.json").exists()
    assert read_previous_run(copies[1]).state == "started", "its run makes the rows anew"


def test_a_merged_dataset_lists_its_shards(parts: list[Path], tmp_path: Path) -> None:
    merge(parts, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert [entry["name"] for entry in dataset.manifest["shards"]] == [path.name for path in dataset.shards]
    assert sum(entry["rows"] for entry in dataset.manifest["shards"]) == len(dataset)


def test_what_a_stranger_made_is_not_signed(parts: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(one, tmp_path / one.name)) for one in parts]
    change_manifest(copies[1], signature="0" * 64)
    merge(copies, tmp_path / "out")
    assert not is_own(open_dataset(tmp_path / "out").manifest)
    assert list(validate(tmp_path / "out")) == []


def test_a_killed_merge_goes_on(parts, inline_dataset, tmp_path) -> None:
    """kill -9 after some shards; the same command then makes the same dataset."""
    script = f"""
        import os, signal
        from phrasebox.pipeline.output import merge as module

        copy, done = module.copy, []

        def copy_some(shard, place):
            if len(done) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            copy(shard, place)
            done.append(place)

        module.copy, module._THREADS = copy_some, 1
        module.merge({[str(one) for one in parts]!r}, {str(tmp_path / "out")!r})
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=os.environ, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "out/data").iterdir())) == 5
    with expect_error(ResumeError):
        merge(parts[::-1], tmp_path / "out")
    printed("merge", *parts, "--out", tmp_path / "out")
    assert_alike(rows_of(tmp_path / "out"), rows_of(inline_dataset))
    assert list(validate(tmp_path / "out")) == []


@pytest.mark.slow
@pytest.mark.usefixtures("storage")
def test_in_object_storage(parts: list[Path], inline_dataset: Path) -> None:
    """Local parts are sent there."""
    merge(parts, "s3://bucket/merged")
    merged = open_dataset("s3://bucket/merged").rows()
    assert_alike(sorted(merged, key=lambda row: row["id"]), rows_of(inline_dataset))
