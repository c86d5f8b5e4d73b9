"""Tables of a dataset that somebody else made: one sentence for each fault, before anything is decoded."""

from pathlib import Path

import pytest

from phrasebox.pipeline.dataset import foreign_tables
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.signature import sign
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.load import RegionDataset, RegionStream
from phrasebox.stages.contract.errors import SchemaError
from tests.build.datasets import change_rows, copy_of, manifest_of
from tests.build.files import write_json
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import called as phrasebox
from tests.pipeline.dataset.hostile import HOSTILE, ROWS, make_hostile, write_good


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    return write_good(tmp_path_factory.mktemp("foreign"))


def test_a_good_dataset_of_somebody_else_is_taken(good: Path, tmp_path: Path) -> None:
    assert len(list(open_dataset(good).rows())) == 8
    assert len(list(RegionStream(good))) == 6
    assert phrasebox("validate", good)[0] == 0
    for name in EXPORTERS:
        settings = ["--set", "exhaustive=all"] if name == "saco" else []
        code, _, err = phrasebox("export", good, "--format", name, "--out", tmp_path / name, *settings)
        assert code == 0, err


@pytest.mark.parametrize("name", HOSTILE)
def test_each_fault_is_told_where_the_dataset_is_opened(name: str, good: Path, tmp_path: Path) -> None:
    dataset = make_hostile(good, name, tmp_path)
    with expect_error(SchemaError):
        open_dataset(dataset)
    with pytest.raises(SchemaError):
        RegionDataset(dataset)
    code, out, err = phrasebox("validate", dataset)
    assert code == 1
    assert "Traceback" not in out + err
    assert "00001.parquet" in out or "occurs" in out


COMMANDS = (*EXPORTERS, "stats", "inspect")
"""Export formats, and commands that read a dataset."""

TOLD = ("mask bomb", "heat map bomb", "box null", "file_name above", "no captions")


def reject(name: str, dataset: Path, out_folder: Path) -> None:
    """One line, exit code 2, and nothing is written."""
    command = ["export", dataset, "--format", name, "--out", out_folder]
    code, out, err = phrasebox(*([name, dataset] if name in ("stats", "inspect") else command))
    assert (code, out) == (2, "")
    assert "00001.parquet: " in err
    assert len(err.splitlines()) == 1
    assert not out_folder.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_goes_on_with_a_fault(name: str, good: Path, tmp_path: Path) -> None:
    for fault in TOLD:
        reject(name, make_hostile(good, fault, tmp_path / fault), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in HOSTILE if fault not in TOLD])
def test_no_command_goes_on_with_any_fault(fault: str, good: Path, tmp_path: Path) -> None:
    dataset = make_hostile(good, fault, tmp_path / "dataset")
    for name in COMMANDS:
        reject(name, dataset, tmp_path / "out")


def test_an_own_dataset_is_not_looked_at(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = copy_of(good, tmp_path)
    write_json(dataset / "dataset.json", sign(manifest_of(dataset)))
    monkeypatch.setattr(foreign_tables, "row_problems", lambda _: pytest.fail("a row was looked at"))
    assert len(list(open_dataset(dataset).rows())) == 8


def test_the_first_bad_row_is_named_wherever_it_is(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_hostile(good, "score NaN", tmp_path)
    monkeypatch.setattr(foreign_tables, "_BATCH_ROWS", 1)
    with pytest.raises(
        SchemaError, match=r"00001\.parquet: row 1 \('s5'\): annotations: 'two dogs': score"
    ):
        open_dataset(dataset)
    change_rows(dataset / "data" / "00000.parquet", ROWS["caption_index beyond"])
    with pytest.raises(SchemaError, match=r"00000\.parquet: row 1 \('s1'\): .* caption_index 9"):
        open_dataset(dataset)


def test_ids_are_compared_across_shards(good: Path, tmp_path: Path) -> None:
    dataset = copy_of(good, tmp_path)
    rows = list(open_dataset(good).rows(["id", "annotations"]))

    def take_id(shard: list[dict[str, object]]) -> None:
        shard[0]["id"] = rows[2]["id"]
        shard[0]["annotations"] = []

    change_rows(dataset / "data" / "00001.parquet", take_id)
    with expect_error(SchemaError):
        open_dataset(dataset)
