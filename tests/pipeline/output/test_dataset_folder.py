"""The dataset's folder: which run may write into it, and what is deleted when."""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline import __version__
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output import journal
from phrasebox.pipeline.output.dataset_folder import DatasetFolder
from phrasebox.pipeline.output.journal import piece_entry, shard_entry, shard_stem
from phrasebox.pipeline.output.manifest import Manifest
from phrasebox.pipeline.output.previous_run import Identity
from phrasebox.pipeline.output.report import Report
from phrasebox.stages.contract.errors import ConfigError, OutputError, ResumeError, SchemaError
from phrasebox.stages.contract.records import stable_key
from phrasebox.stages.contract.schema import SCHEMA_VERSION
from phrasebox.stages.files.shards import read_shard_file
from tests.build.cases import cases
from tests.build.datasets import manifest_of
from tests.messages import expect_error
from tests.stages.write.rows import mixed, write_shards

MARK = "demo:0123"
KEYS = {record.sample.key for record in mixed()}
COMPANIONS = {"categories.parquet", "README.md", "croissant.json", "dataset.json", ".phrasebox/lock"}


def config_of(folder: Path, **sections: Any) -> RunConfig:
    plain = {
        "input": {"kind": "jsonl", "path": "a.jsonl"},
        "model": {"name": "demo"},
        "engine": {"kind": "inline"},
    }
    return RunConfig.model_validate({**plain, **sections, "output": {"path": str(folder)}})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[DatasetFolder]:
    """A locked folder without a run."""
    folder = DatasetFolder(tmp_path / "out")
    with folder.locked():
        yield folder


def identity_of(config: RunConfig, mark: str = MARK, version: Any = __version__) -> Identity:
    return Identity(phrasebox_version=version, model_fingerprint=mark, config=config.rows_depend_on())


def begin(
    folder: DatasetFolder,
    *,
    fresh: bool = False,
    mark: str = MARK,
    version: Any = __version__,
    **sections: Any,
) -> str:
    """Begin unless there is nothing to do; returns the state that was previous."""
    claim = folder.claim_fresh if fresh else folder.claim
    previous = claim(identity_of(config_of(folder.path, **sections), mark, version))
    if previous.state != "complete":
        folder.start(previous)
    return previous.state


def write(records: Any, folder: DatasetFolder) -> None:
    """Write records as the run that was begun in the folder does in one process."""
    write_shards(records, folder.data, on_written=folder.note_shard)


def finish(folder: DatasetFolder, read: int = 9) -> None:
    report = Report()
    report.read(0, read, report.skipped)
    folder.finish(report, Manifest(config=config_of(folder.path), model={"name": "demo"}))


def complete(folder: DatasetFolder) -> None:
    begin(folder)
    write(mixed(), folder)
    finish(folder)


def keys_of(folder: DatasetFolder) -> set[int]:
    """The samples that are done."""
    return set(folder.journal.keys.tolist())


def names(folder: DatasetFolder) -> set[str]:
    return {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}


def test_new_then_started_then_complete(folder: DatasetFolder) -> None:
    assert begin(folder) == "new"
    assert keys_of(folder) == set()
    write(mixed(), folder)
    other_machine = {"name": "demo", "threads": 1, "device": "cpu"}
    assert begin(folder, model=other_machine) == "started", "rows do not depend on it"
    assert keys_of(folder) == KEYS
    finish(folder)
    assert begin(folder) == "complete"
    assert names(folder) == {f"data/{n:05d}.parquet" for n in range(3)} | COMPANIONS
    manifest = manifest_of(folder.path)
    versions = {"schema_version": SCHEMA_VERSION, "phrasebox_version": __version__}
    assert manifest.items() >= {**versions, "model": {"name": "demo"}, "model_fingerprint": MARK}.items()
    stored = RunConfig.model_validate(manifest["config"])
    assert stored.rows_depend_on() == config_of(folder.path).rows_depend_on()
    failures = {"bad_image": 1, "missing_image": 1}
    counts = {"read": 9, "written": 9, "phrases": 12, "regions": 9, "categories": 2, "files": 3}
    assert manifest["counts"].items() >= {**counts, "failed": 2, "failed_by_reason": failures}.items()
    with expect_error(ResumeError, key="output.path"):
        begin(folder, phrases={"max_phrases": 3})


def test_another_configuration_is_refused_with_the_differences(folder: DatasetFolder) -> None:
    begin(folder)
    with pytest.raises(ResumeError) as error:
        begin(folder, explain={"blocks": 2}, regions={"rule": "mean"}, mark="demo:4567")
    assert str(error.value).splitlines() == [
        f"output.path: {folder.path} holds a run with other settings:",
        f"  model_fingerprint: '{MARK}' there, 'demo:4567' now",
        "  explain.blocks: 4 there, 2 now",
        "  regions.rule: 'fixed' there, 'mean' now",
        "Give another folder, or --fresh to delete that run and start over.",
    ]


@pytest.mark.parametrize("other", ["0.0.9", "0.2.0", "1.1.0", None])
def test_an_unfinished_run_of_another_version_is_not_continued(other, folder) -> None:
    begin(folder, version=other)
    with expect_error(ResumeError):
        begin(folder, version="0.1.3")
    assert begin(folder, fresh=True, version="0.1.3") == "new"
    write(mixed(), folder)
    assert begin(folder, version="0.1.4") == "started", "a patch leaves rows as they are"


def test_a_finished_dataset_of_another_version_is_complete_but_gets_no_new_rows(folder) -> None:
    complete(folder)
    assert begin(folder, version="0.2.0") == "complete"
    folder.shards[0].unlink()
    with expect_error(ResumeError):
        begin(folder, version="0.2.0")


def test_fresh_deletes_the_run_and_keeps_foreign_files(folder: DatasetFolder) -> None:
    complete(folder)
    foreign = ["notes.txt", "data/notes.txt", "images/a.jpg", ".git/config"]
    for name in foreign:
        (folder.path / name).parent.mkdir(exist_ok=True)
        (folder.path / name).write_text("mine")
    (folder.data / ".00007.parquet.99.tmp").write_text("left by a kill")
    before = names(folder)
    assert begin(folder, fresh=True, explain={"blocks": 1}) == "new"
    assert not folder.shards
    folder.drop_backup()
    assert len(names(folder)) == len(before) + 2, "nothing is deleted until the new run has a file"
    write(mixed()[:1], folder)
    assert names(folder) == {
        *foreign,
        "data/00000.parquet",
        ".phrasebox/lock",
        ".phrasebox/run.json",
        ".phrasebox/journal-0001/00000.parquet",
        ".phrasebox/journal-0001/00001.parquet",
    }


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    "name", ["data/train.parquet", "README.md", "croissant.json", "categories.parquet", "dataset.json"]
)
def test_files_that_no_run_explains_are_neither_touched_nor_joined(name, fresh, folder) -> None:
    """A folder named by mistake, say that of the user's own project, loses nothing."""
    (folder.path / name).parent.mkdir(exist_ok=True)
    (folder.path / name).write_text('{"name": "mine"}')
    with expect_error(ResumeError, key="output.path"):
        begin(folder, fresh=fresh)
    assert (folder.path / name).read_text() == '{"name": "mine"}'


@pytest.mark.parametrize("name", ["dataset.json", ".phrasebox/run.json"])
def test_a_damaged_mark_is_told_and_fresh_starts_over(name: str, folder: DatasetFolder) -> None:
    """Nothing in these shards says which run made them."""
    begin(folder)
    write(mixed(), folder)
    if name == "dataset.json":
        finish(folder)
    (folder.path / name).write_text('{"half')
    with expect_error(ResumeError):
        begin(folder)
    assert begin(folder, fresh=True) == "new"
    assert not list(folder.data.glob("*.parquet"))


@pytest.mark.parametrize("is_complete", [False, True], ids=["unfinished", "finished"])
def test_a_damaged_shard_is_set_aside_and_its_rows_are_done_again(is_complete, folder) -> None:
    begin(folder)
    write(mixed(), folder)
    if is_complete:
        finish(folder)
    shard = folder.shards[1]
    lost = set(keys_in(shard))
    shard.write_bytes(b"PAR1 half of a file")
    assert begin(folder) == "started"
    place = folder.path / ".phrasebox/damaged/00001.parquet"
    assert folder.notes[0].endswith(f"moved to {place}, its rows are done again")
    assert place.read_bytes() == b"PAR1 half of a file"
    assert keys_of(folder) == KEYS - lost
    with expect_error(ResumeError):
        finish(folder)


@cases(
    ("records", "read"),
    {"lost": (mixed(), 10), "doubled, and as many lost": ([*mixed()[:8], mixed()[0]], 9)},
)
def test_every_sample_has_one_row(records, read, folder) -> None:
    begin(folder)
    write(records, folder)
    with expect_error(RuntimeError):
        finish(folder, read=read)
    assert not (folder.path / "dataset.json").exists()


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    first = DatasetFolder(tmp_path / "out")
    second = DatasetFolder(tmp_path / "out")
    with first.locked():
        with expect_error(ResumeError, key="output.path"), second.locked():
            pass
        with DatasetFolder(tmp_path / "other").locked():
            pass
    with second.locked():
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from phrasebox.pipeline.output.dataset_folder import DatasetFolder
        with DatasetFolder(Path({str(tmp_path)!r})).locked():
            os.kill(os.getpid(), signal.SIGKILL)
    """
    root = Path(__file__).parents[3]
    assert (
        subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=root, check=False).returncode
        == -9
    )
    with DatasetFolder(tmp_path).locked():
        pass


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert DatasetFolder(Path("~/out")).path == DatasetFolder(Path("out")).path == tmp_path / "out"
    (tmp_path / "file").touch()
    inside = DatasetFolder(tmp_path / "file" / "out")
    with expect_error(ConfigError, key="output.path"), inside.locked():
        pass


@pytest.mark.parametrize("is_in_storage", [False, True])
def test_a_shard_with_damaged_pages_is_named_at_the_end(
    folder: DatasetFolder, is_in_storage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_in_storage:  # where the sizes of shards are compared alone, counting finds it
        monkeypatch.setattr(DatasetFolder, "_check_shards", lambda _: None)
    begin(folder)
    write(mixed(), folder)
    shard = folder.data / "00001.parquet"
    content = bytearray(shard.read_bytes())
    content[4:200] = bytes(196)
    shard.write_bytes(content)
    with expect_error(SchemaError if is_in_storage else OutputError):
        finish(folder)


@pytest.fixture
def noted(folder: DatasetFolder) -> DatasetFolder:
    """An attempt whose workers have written three shards, of which the driver has noted two."""
    begin(folder)
    assert worker_shards(folder, mixed()) == 3
    for path in folder.shards[:2]:
        folder.journal.add_shards(shard_entry(read_shard_file(path), keys_in(path)))
    folder.journal.flush()
    return folder


def worker_shards(folder: DatasetFolder, records: Any) -> int:
    """Write shards as workers of this attempt do; how many there are now."""
    write_shards(records, folder.data)
    for path in folder.data.glob("0000?.parquet"):
        name = shard_stem(pq.read_table(path)["sample_id"].to_pylist(), folder.journal.attempt)
        path.rename(folder.data / f"{name}-0.parquet")
    return len(folder.shards)


def keys_in(path: Any) -> list[int]:
    return [stable_key(name) for name in pq.read_table(path)["sample_id"].to_pylist()]


def test_a_resumed_run_knows_what_was_noted_and_what_was_not(noted: DatasetFolder) -> None:
    assert begin(noted) == "started"
    assert noted.journal.attempt == 2
    assert keys_of(noted) == KEYS
    assert noted.journal.shards.keys() == {path.name for path in noted.shards}
    assert [path.name for path in (noted.path / ".phrasebox").glob("journal-*")] == ["journal-0002"]
    finish(noted)
    assert not list((noted.path / ".phrasebox").glob("journal-*"))


@pytest.mark.parametrize("late", ["in the attempt", "before the next take-over", "before the end"])
def test_a_write_that_workers_repeat_goes(late: str, noted: DatasetFolder) -> None:
    """After a node was lost, or after their driver was killed; so does a file that was being written."""
    attempt = noted.journal.attempt
    if late != "in the attempt":
        begin(noted)
    shards = set(noted.shards)
    content = next(path for path in noted.shards if path.name in noted.journal.shards).read_bytes()
    (noted.data / f"{shard_stem(['x'], attempt)}-0.parquet").write_bytes(content)
    (noted.data / ".00007.parquet.4711.tmp").write_bytes(b"PAR1")
    for name in (".dataset.json.4711.tmp", ".phrasebox/.run.json.4711.tmp", ".mine.json.4711.tmp"):
        (noted.path / name).write_text("{")
    if late != "before the end":
        begin(noted)
    finish(noted)
    assert set(noted.data.iterdir()) == shards
    unwritten = {path.name for path in noted.path.rglob(".*.tmp")}
    assert unwritten == {".mine.json.4711.tmp"}, "another program may be writing it"


@pytest.mark.parametrize("content", [None, b"PAR1"])
def test_rows_whose_noted_shard_is_gone_or_damaged_are_done_again(
    content: bytes | None, noted: DatasetFolder
) -> None:
    path = noted.data / sorted(noted.journal.shards)[0]
    lost = set(keys_in(path))
    path.unlink() if content is None else path.write_bytes(content)
    begin(noted)
    assert keys_of(noted) == KEYS - lost
    (note,) = noted.notes
    assert note.endswith("rows are done again")


def test_a_shard_with_new_ids_counts(noted: DatasetFolder) -> None:
    """Ids are set apart at the end of a run, which may be killed there: the noted sizes are those from before."""
    path = noted.data / sorted(noted.journal.shards)[0]
    pq.write_table(pq.read_table(path), path, compression="none")
    begin(noted)
    assert keys_of(noted) == KEYS
    assert noted.notes == []


def test_a_damaged_journal_is_named_and_nothing_goes(noted: DatasetFolder) -> None:
    shards = set(noted.shards)
    first, *_ = sorted((noted.path / ".phrasebox").glob("journal-*/*"))
    first.write_bytes(b"PAR1")
    with expect_error(ResumeError):
        begin(noted)
    shutil.rmtree(first.parent)
    begin(noted)
    assert set(noted.shards) == shards
    assert keys_of(noted) == KEYS


@pytest.mark.parametrize("step", range(4))
def test_a_take_over_that_is_killed_is_done_again(step: int, noted: DatasetFolder, monkeypatch) -> None:
    """In front of its first file, behind it, and while the journal before goes."""
    calls = count()

    def killed(work: Any) -> Any:
        def work_or_die(*arguments: Any) -> Any:
            if next(calls) == step:
                raise InterruptedError
            return work(*arguments)

        return work_or_die

    for name in ("_write", "remove_tree"):
        monkeypatch.setattr(journal, name, killed(getattr(journal, name)))
    with suppress(InterruptedError):
        begin(noted)
    monkeypatch.undo()
    assert begin(noted) == "started"
    assert keys_of(noted) == KEYS
    assert len(noted.shards) == 3
    finish(noted)


def test_a_take_over_deletes_nothing_before_its_journal_is_written(
    noted: DatasetFolder, monkeypatch
) -> None:
    """Neither what a worker has written twice nor what one of an older attempt has written late."""
    begin(noted)
    content = noted.shards[0].read_bytes()
    attempts = {"late": 1, "repeated": noted.journal.attempt}
    extra = {noted.data / f"{shard_stem([name], attempt)}-0.parquet" for name, attempt in attempts.items()}
    for path in extra:
        path.write_bytes(content)
    before = set(noted.shards)

    def die(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(journal, "_write", die)
    with suppress(InterruptedError):
        begin(noted)
    assert set(noted.shards) == before
    monkeypatch.undo()
    begin(noted)
    assert set(noted.shards) == before - extra
    assert keys_of(noted) == KEYS


@cases(
    ("same_input", "rows", "read"),
    {
        "done": (True, 9, {"whole": (9, {"bad_row": 2}), "empty": (0, {})}),
        "a row is missing": (True, 8, {"empty": (0, {})}),
        "another input": (False, 9, {}),
    },
)
def test_a_part_of_the_input_is_done_if_each_of_its_samples_has_a_row(
    same_input, rows, read, folder
) -> None:
    begin(folder)
    worker_shards(folder, mixed()[:rows])
    pieces = {"whole": ([*KEYS], {"bad_row": 2}), "empty": ([], {}), "other": ([7], {})}
    for name, (keys, skipped) in pieces.items():
        folder.journal.add(piece_entry(name, keys, skipped))
    folder.journal.flush()
    for _ in range(2):  # what was done stays done
        previous = folder.claim(identity_of(config_of(folder.path)))
        folder.start(replace(previous, has_same_input=same_input))
        assert folder.journal.pieces == read


@pytest.mark.parametrize("consent", [False, True])
def test_fresh_asks_before_it_deletes_what_no_run_wrote(consent: bool, folder: DatasetFolder) -> None:
    complete(folder)
    foreign = [folder.data / "mine.parquet", folder.path / "README.md", folder.path / "croissant.json"]
    for path in foreign:
        path.write_text("mine")

    def may_delete(what: str, files: list[Path]) -> bool:
        assert (what, files) == (f"{folder.path} holds a finished dataset with 9 rows", foreign)
        return consent

    before = names(folder)
    with nullcontext() if consent else expect_error(ResumeError):
        folder.start(folder.claim_fresh(identity_of(config_of(folder.path)), may_delete))
    assert (names(folder) == before) is not consent
    assert bool(folder.shards) is not consent


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("AWS Error ACCESS_DENIED during PutObject"), "s3://bucket/out: AWS Error ACCESS_DENIED"),
        (
            OSError(28, "No space left on device", "/tmp/a/0.parquet"),
            "cannot write to /tmp/a/0.parquet: No space left",
        ),
        (FileNotFoundError(2, "No such file or directory", "/models/a.safetensors"), None),
    ],
)
def test_what_an_error_in_a_run_into_object_storage_is_about(error: OSError, words: str | None) -> None:
    wanted = type(error) if words is None else OutputError
    with pytest.raises(wanted, match=words), DatasetFolder("s3://bucket/out").writing():
        raise error
