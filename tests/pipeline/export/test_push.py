"""`phrasebox export --push`: the hub's own client uploads the export to a server of the hub's protocol."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from phrasebox.pipeline.commands.cli import app
from phrasebox.pipeline.export.files import MARK
from phrasebox.stages.contract.errors import ConfigError, OutputError
from tests.messages import expect_error
from tests.pipeline.export.datasets import write_dataset
from tests.pipeline.export.hub import Hub, Repository, running

NAME = "house/regions"

# The client itself calls its HTTP library so.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("push") / "dataset")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running(Hub()) as hub:
        for name, value in {
            "ENDPOINT": hub.endpoint,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.chdir(tmp_path)
        yield hub


def pushed(dataset: Path, *options: object, name: str = NAME) -> Any:
    arguments = ["export", dataset, "--format", "hf", "--push", name, *options]
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, list(map(str, arguments)))


def test_the_repository_is_private_and_holds_the_export(dataset: Path, hub: Hub, tmp_path: Path) -> None:
    """Under the repository's name it stays here, too; another export takes its place, with no file of the old one."""
    answer = pushed(dataset, "--set", "rows_per_file=5")
    assert answer.exit_code == 0, answer.exception
    assert f"uploaded to {hub.endpoint}/datasets/{NAME}" in answer.stdout
    repository = hub.repositories[NAME]
    files = (path for path in (tmp_path / "regions").rglob("*") if path.is_file())
    here = {path.relative_to(tmp_path / "regions").as_posix(): path.read_bytes() for path in files}
    assert repository.private
    assert repository.files == {".gitattributes": b"", **here}
    assert sorted(here)[-1] == "data/train-00002-of-00003.parquet"
    assert repository.commits == ["phrasebox export"]

    before = dict(repository.files)
    again = pushed(dataset, "--out", tmp_path / "other")
    assert isinstance(again.exception, ConfigError)
    assert "--push: house/regions holds an export; give another name, or --overwrite" in str(
        again.exception
    )
    assert repository.files == before
    assert not (tmp_path / "other").exists(), "nothing is exported if it cannot be pushed"
    hub.broken = "/commit/"
    assert isinstance(pushed(dataset, "--out", tmp_path / "other", "--overwrite").exception, OutputError)
    assert repository.files == before, "nothing is deleted before the new files are there"
    hub.broken = ""
    answer = pushed(dataset, "--out", tmp_path / "other", "--overwrite", "--json")
    assert repository.commits[1:] == ["phrasebox export", "phrasebox export: the one before"]
    assert json.loads(answer.stdout)["pushed"] == f"{hub.endpoint}/datasets/{NAME}"
    assert [name for name in repository.files if name.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert pq.read_table(io.BytesIO(repository.files["data/train-00000-of-00001.parquet"])).num_rows == 12


@pytest.mark.parametrize(
    ("repository", "options"),
    [
        (Repository(True, {"model.bin": b"1"}), ["--overwrite"]),
        (Repository(False, {}), []),
        (Repository(False, {MARK: b"{}"}), ["--overwrite"]),
    ],
)
def test_other_repositories_stay_as_they_are(repository, options, dataset, hub, tmp_path) -> None:
    hub.repositories[NAME] = repository
    before = dict(repository.files)
    with expect_error(ConfigError, key="--push"):
        raise pushed(dataset, *options).exception
    assert (repository.files, repository.commits, list(tmp_path.iterdir())) == (before, [], [])


def test_the_best_are_pushed_and_what_cannot_be_chosen_creates_nothing(dataset: Path, hub: Hub) -> None:
    answer = pushed(dataset, "--precision", "0.7")
    assert isinstance(answer.exception, ConfigError)
    assert hub.repositories == {}
    answer = pushed(dataset, "--keep", "0.3", "--public")
    assert answer.exit_code == 0, answer.exception
    assert "0.3: score >= 0.650 keeps 5 of 17 regions" in answer.stdout
    assert not hub.repositories[NAME].private
    assert json.loads(hub.repositories[NAME].files[MARK])["counts"]["threshold"]["regions"] == 5


def test_faults_say_what_to_do(
    dataset: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("regions", "a/b/c", "house/two words"):
        assert isinstance(pushed(dataset, name=name).exception, ConfigError), name
    with expect_error(ConfigError, key="--push"):
        raise pushed(dataset, "--format", "coco").exception
    hub.broken = "/commit/"
    with expect_error(OutputError, key="--push"):
        raise pushed(dataset).exception
    assert (tmp_path / "regions" / MARK).is_file(), "the export is kept"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with expect_error(OutputError, key="--push"):
        raise pushed(dataset, name="house/x").exception
    assert not (tmp_path / "x").exists()
