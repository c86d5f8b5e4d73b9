"""Shards and marks that were damaged, deleted or copied: nothing is counted that its run did not write."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from phrasebox.pipeline.commands.cli import app
from phrasebox.pipeline.dataset import shard_list
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.index import Index
from phrasebox.pipeline.dataset.signature import is_own
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.load import RegionDataset
from phrasebox.pipeline.output.repair import repair
from phrasebox.stages.contract.errors import InputError, OutputError, ResourceError, ResumeError
from phrasebox.stages.files.shards import ORIGIN_KEY, sha256_of
from tests.build.cases import cases
from tests.build.datasets import Json, change_manifest, manifest_of, shards_of
from tests.messages import expect_error
from tests.pipeline.light import rows_of, write_captions
from tests.pipeline.output.light_runs import RaisingStage, light_config, run_light

COLUMNS = ["captions.list.element", "file_name", "sample_id", "id"]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path, [f"word{number} and more" for number in range(40)])


@pytest.fixture
def finished(captions: Path, tmp_path: Path) -> Path:
    """A finished dataset of 40 rows in five shards."""
    run_light(light_config(captions, tmp_path / "out"))
    return tmp_path / "out"


@pytest.fixture
def unfinished(captions: Path, tmp_path: Path) -> Path:
    """A run that has written 32 rows in four shards, and was stopped then."""
    with pytest.raises(ResourceError):
        run_light(
            light_config(captions, tmp_path / "out"), last=RaisingStage(ResourceError("no cluster"), 1)
        )
    assert len(shards_of(tmp_path / "out")) == 4
    return tmp_path / "out"


def wanted_rows(captions: Path) -> list[Json]:
    out = captions.parent / "quiet"
    run_light(light_config(captions, out))
    return rows_of(out)


def problems_in(dataset: Path) -> list[str]:
    """The problems but for those of rows: light stages leave much out."""
    return [line for line in validate(dataset) if ".parquet: row " not in line]


def change_page(shard: Path, column: str) -> None:
    """Change a byte in the middle of a column's page, and nothing that the footer says."""
    with pq.ParquetFile(shard) as file:
        group = file.metadata.row_group(0)
        chunks = [group.column(number) for number in range(group.num_columns)]
    (chunk,) = (chunk for chunk in chunks if chunk.path_in_schema == column)
    content = bytearray(shard.read_bytes())
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    content[first + chunk.total_compressed_size - 2] ^= 0x10
    shard.write_bytes(content)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_resumed_run_makes_the_rows_of_a_changed_shard_anew(column, captions, unfinished) -> None:
    change_page(shards_of(unfinished)[1], column)
    printed = run_light(light_config(captions, unfinished))
    place = unfinished / ".phrasebox/damaged/00001.parquet"
    assert f"moved to {place}, its rows are done again" in printed
    assert rows_of(unfinished) == wanted_rows(captions)
    assert problems_in(unfinished) == []


def test_a_shard_that_was_written_and_not_noted_is_read_whole(captions, unfinished) -> None:
    """A kill leaves the last shards so."""
    shutil.rmtree(next((unfinished / ".phrasebox").glob("journal-*")))
    change_page(shards_of(unfinished)[1], "captions.list.element")
    assert "its rows are done again" in run_light(light_config(captions, unfinished))
    assert rows_of(unfinished) == wanted_rows(captions)


def test_a_run_of_before_noted_no_digests(captions, unfinished) -> None:
    """Its shards are read whole."""
    for path in (unfinished / ".phrasebox").glob("journal-*/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["sha256", "footer_sha256"]), path)
    change_page(shards_of(unfinished)[1], "captions.list.element")
    assert "its rows are done again" in run_light(light_config(captions, unfinished))
    assert rows_of(unfinished) == wanted_rows(captions)


@pytest.mark.parametrize("is_gone", [False, True], ids=["truncated", "gone"])
def test_a_finished_dataset_makes_rows_of_changed_shards_anew(is_gone, captions, finished) -> None:
    shard = shards_of(finished)[2]
    shard.unlink() if is_gone else shard.write_bytes(shard.read_bytes()[:-1])
    run_light(light_config(captions, finished))
    assert rows_of(finished) == wanted_rows(captions)
    assert problems_in(finished) == []


def test_a_changed_footer_is_noticed_by_readers_and_where_a_dataset_is_complete(captions, finished) -> None:
    shard = shards_of(finished)[2]
    content = shard.read_bytes()
    assert content.count(b"parquet-cpp-arrow") == 1
    shard.write_bytes(content.replace(b"parquet-cpp-arrow", b"parquet-cpp-arroW"))
    pq.read_table(shard)  # for Parquet it is as good as the other
    dataset = open_dataset(finished)
    with expect_error(InputError):
        list(dataset.rows())
    with expect_error(InputError), closing(Index(dataset, {})) as index:
        index.build()
    with expect_error(InputError):
        RegionDataset(finished)
    assert "its rows are done again" in run_light(light_config(captions, finished))
    assert problems_in(finished) == []


@pytest.mark.parametrize("column", COLUMNS)
def test_what_validate_finds_the_next_run_makes_anew(column, captions, finished) -> None:
    shard = shards_of(finished)[2]
    change_page(shard, column)
    (line, *_) = problems_in(finished)
    assert line.startswith(f"{shard}: damaged: its content is not what its run wrote")
    assert "run the same command again" in line
    assert "its rows are done again" in run_light(light_config(captions, finished))
    assert rows_of(finished) == wanted_rows(captions)
    assert problems_in(finished) == []
    assert "nothing to do" in run_light(light_config(captions, finished))


def test_a_reader_names_the_changed_shard_and_the_remedy(finished: Path) -> None:
    change_page(shards_of(finished)[2], "captions.list.element")
    with expect_error(InputError):
        list(open_dataset(finished).rows(["captions"]))


def test_a_manifest_lists_the_shards(finished: Path) -> None:
    entries = manifest_of(finished)["shards"]
    paths = shards_of(finished)
    assert [entry["name"] for entry in entries] == [path.name for path in paths]
    assert [entry["sha256"] for entry in entries] == [sha256_of(path) for path in paths]
    assert [entry["size_bytes"] for entry in entries] == [path.stat().st_size for path in paths]
    assert [entry["rows"] for entry in entries] == [8] * 5
    lines = (finished / "dataset.json").read_text().splitlines()
    assert sum('"sha256"' in line for line in lines) == 5, "a line each"


COPIES = ["0001-" + "ab" * 16 + "-0.parquet", "part-00000.parquet", "00001 (conflicted copy).parquet"]


@pytest.mark.parametrize("name", COPIES)
def test_another_file_among_the_shards_is_named_and_not_read(name, captions, finished, caplog) -> None:
    shutil.copy(shards_of(finished)[1], finished / "data" / name)
    dataset = open_dataset(finished)
    assert len(list(dataset.rows(["sample_id"]))) == len(dataset) == 40
    (line,) = caplog.messages
    assert (
        line
        == f"{finished / 'data'} holds files that dataset.json does not list, and that are not read: {name}"
    )
    printed = run_light(light_config(captions, finished))
    assert line in printed
    assert "nothing to do" in printed
    assert any(f"{name}: dataset.json does not list it" in problem for problem in validate(finished))


@pytest.mark.parametrize("name", [*COPIES, "00776.parquet"])
def test_a_copy_in_an_unfinished_run_is_dropped_with_a_word(name, captions, unfinished) -> None:
    shutil.copy(shards_of(unfinished)[1], unfinished / "data" / name)
    printed = run_light(light_config(captions, unfinished))
    if not name.startswith("0001-"):  # a worker may have written that twice
        assert f"data/{name} holds rows that another shard holds, too: moved to " in printed
    assert rows_of(unfinished) == wanted_rows(captions)
    assert not (unfinished / "data" / name).exists()


def test_a_copy_that_comes_while_a_run_writes_is_not_counted(captions, tmp_path) -> None:
    class CopyingStage(RaisingStage):
        def process(self, batch):  # type: ignore[no-untyped-def]
            for shard in shards_of(tmp_path / "out")[:1]:
                shutil.copy(shard, shard.with_name("00700.parquet"))
            return list(batch)

    config = light_config(captions, tmp_path / "out")
    printed = run_light(config, last=CopyingStage(ResourceError(""), 9))
    assert "does not list, and that are not read: 00700.parquet" in printed
    assert len(list(open_dataset(tmp_path / "out").rows(["sample_id"]))) == 40


def test_a_shard_that_is_damaged_while_a_run_writes_others_does_not_count(captions, tmp_path) -> None:
    class DamagingStage(RaisingStage):
        def process(self, batch):  # type: ignore[no-untyped-def]
            for shard in shards_of(tmp_path / "out")[:1]:
                content = bytearray(shard.read_bytes())
                content[-40] ^= 1  # in the footer, which has no checksum
                shard.write_bytes(content)
            return list(batch)

    config = light_config(captions, tmp_path / "out")
    with expect_error(OutputError):
        run_light(config, last=DamagingStage(ResourceError(""), 9))
    assert "00000.parquet is damaged" in run_light(config)
    assert rows_of(tmp_path / "out") == wanted_rows(captions)


def test_more_samples_come_to_a_dataset_with_another_file(captions, finished) -> None:
    shutil.copy(shards_of(finished)[1], finished / "data/00776.parquet")
    write_captions(captions.parent, [f"word{number} and more" for number in range(50)])
    assert "00776.parquet is not in the list of dataset.json: moved to" in run_light(
        light_config(captions, finished)
    )
    assert rows_of(finished) == wanted_rows(captions)


def test_a_dataset_that_lacks_a_listed_shard_is_not_read(finished: Path) -> None:
    shards_of(finished)[1].unlink()
    with expect_error(InputError):
        open_dataset(finished)


@cases(
    ("change"),
    {
        "no list": {"shards": {}},
        "no digest": {"shards": [{"name": "00000.parquet"}]},
        "elsewhere": {
            "shards": [
                {"name": "../a.parquet", "rows": 1, "size_bytes": 1, "sha256": "", "footer_sha256": ""}
            ]
        },
    },
)
def test_a_list_that_is_damaged_or_leaves_the_folder_is_refused(change: Json, finished: Path) -> None:
    change_manifest(finished, **change)
    with expect_error(InputError):
        open_dataset(finished)


def without_list(dataset: Path) -> None:
    manifest = manifest_of(dataset)
    del manifest["shards"]
    (dataset / "dataset.json").write_text(json.dumps(manifest))


def test_a_dataset_without_a_list_opens_with_one_note(captions, finished, caplog) -> None:
    without_list(finished)
    shard_list.note_once.cache_clear()
    for _ in range(3):
        assert len(list(open_dataset(finished).rows(["sample_id"]))) == 40
    (line,) = caplog.messages
    assert "phrasebox validate --repair adds the list" in line
    assert "nothing to do" in run_light(light_config(captions, finished))
    printed = CliRunner().invoke(app, ["validate", str(finished), "--repair"]).stdout
    assert f"{finished / 'dataset.json'} now lists 5 shards" in printed
    assert [entry["rows"] for entry in manifest_of(finished)["shards"]] == [8] * 5


def test_more_rows_than_a_manifest_without_a_list_counts_are_refused(captions, finished) -> None:
    without_list(finished)
    shutil.copy(shards_of(finished)[1], finished / "data/00776.parquet")
    with expect_error(ResumeError):
        run_light(light_config(captions, finished))


MARKS = {
    "manifest deleted": (["dataset.json"], None),
    "manifest truncated": (["dataset.json"], '{"half'),
    "manifest and folder deleted": (["dataset.json", ".phrasebox"], None),
}


@pytest.mark.parametrize("is_run", [True, False], ids=["run", "repair"])
@cases(("names", "text"), MARKS)
def test_a_lost_manifest_is_made_again(names, text, is_run, captions, finished) -> None:
    before = manifest_of(finished)
    rows = rows_of(finished)
    for name in names:
        path = finished / name
        if text is not None:
            path.write_text(text)
        else:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if is_run:
        printed = run_light(light_config(captions, finished))
        assert "made again by what the shards say of their run" in printed
        assert "rows so far: 40 of 40" in printed
    else:
        assert "40 rows in 5 shards" in repair(finished)
    after = manifest_of(finished)
    changed = {"wall_time_s", "stages", "run"}
    assert {key: after[key] for key in after.keys() - changed} == {
        key: before[key] for key in before.keys() - changed
    }
    assert is_own(after)
    assert rows_of(finished) == rows
    assert problems_in(finished) == []
    assert "nothing to do" in run_light(light_config(captions, finished))


@pytest.mark.parametrize("text", ['{"half', None], ids=["truncated", "deleted"])
def test_a_lost_mark_of_an_unfinished_run_is_made_again(text, captions, unfinished) -> None:
    path = unfinished / ".phrasebox/run.json"
    path.write_text(text) if text else path.unlink()
    assert "made again by what the shards say" in run_light(light_config(captions, unfinished))
    assert rows_of(unfinished) == wanted_rows(captions)


def test_a_run_that_the_shards_name_is_not_joined_by_another(captions, finished) -> None:
    (finished / "dataset.json").unlink()
    with expect_error(ResumeError, key="output.path"):
        run_light(light_config(captions, finished, phrases={"max_phrases": 3}))


def test_shards_of_several_runs_make_no_manifest(captions, finished, tmp_path) -> None:
    run_light(light_config(captions, tmp_path / "other", phrases={"max_phrases": 3}))
    shutil.copy(shards_of(tmp_path / "other")[0], finished / "data/00009.parquet")
    (finished / "dataset.json").unlink()
    for work in (lambda: run_light(light_config(captions, finished)), lambda: repair(finished)):
        with expect_error(ResumeError):
            work()


def test_a_shard_whose_metadata_are_damaged_names_no_run(captions, finished) -> None:
    """Its pages are sound, and Parquet has no checksum for the rest."""
    shard = shards_of(finished)[2]
    content = shard.read_bytes()
    assert b'"max_phrases": ' in content
    shard.write_bytes(content.replace(b'"max_phrases": ', b'"max_phrasgs": ', 1))
    (finished / "dataset.json").unlink()
    printed = run_light(light_config(captions, finished))
    assert f"data/{shard.name} is damaged (what it says of its run does not have its digest)" in printed
    assert rows_of(finished) == wanted_rows(captions)
    assert problems_in(finished) == []


def test_another_users_dataset_is_repaired_without_a_signature(finished: Path) -> None:
    """Or what it names would be followed."""
    for shard in shards_of(finished):
        table = pq.read_table(shard)
        origin = json.loads(table.schema.metadata[ORIGIN_KEY])
        origin["config"]["input"]["image_root"] = "/etc"
        pq.write_table(table.replace_schema_metadata({ORIGIN_KEY: json.dumps(origin)}), shard)
    (finished / "dataset.json").unlink()
    repair(finished)
    assert not is_own(manifest_of(finished))


@pytest.mark.parametrize("text", ['{"half', None], ids=["truncated", "deleted"])
def test_a_reader_says_how_a_lost_manifest_comes_back(text, finished) -> None:
    path = finished / "dataset.json"
    path.write_text(text) if text else path.unlink()
    with expect_error(InputError):
        open_dataset(finished)


def test_a_folder_that_is_not_there_is_not_repaired(tmp_path: Path) -> None:
    with expect_error(InputError):
        repair(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_an_unfinished_run_is_not_repaired(unfinished: Path) -> None:
    with expect_error(ResumeError):
        repair(unfinished)


def test_a_damaged_shard_is_not_repaired_away(captions, finished) -> None:
    (finished / "dataset.json").unlink()
    change_page(shards_of(finished)[1], "captions.list.element")
    with expect_error(InputError):
        repair(finished)
    run_light(light_config(captions, finished))
    assert rows_of(finished) == wanted_rows(captions)
