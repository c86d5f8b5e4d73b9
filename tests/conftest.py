"""What all tests share: no network, no caches, few threads, the order of parallel tests, and two small datasets."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from phrasebox.stages.contract.plugins import PACKAGE, entry_points_by_package
from phrasebox.stages.phrases import parsers
from tests.build.datasets import Json

if TYPE_CHECKING:
    from tests.cuda.simulated import SimulatedCuda

collect_ignore = ["plug_in"]  # a package of its own, whose tests run where it is installed

# Read by the libraries when they are imported, which a fixture would be too late for.
_CACHE = tempfile.TemporaryDirectory(prefix="phrasebox-tests-")  # goes away with this variable
os.environ["HF_HOME"] = os.environ["XDG_STATE_HOME"] = os.environ["XDG_CACHE_HOME"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
# One unless told otherwise, since `make test` runs several processes: threads that wait for each other on a busy core
# take many times as long.
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
# Ray's workers would give way to the other tests, and the test that waits for them would take many times as long.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - that is its name

# The same examples each time: a failure is the change's own. `make fuzz` draws others, and twice as many. Nothing is
# too slow: other programs may need the machine.
PATIENT = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("same", PATIENT, derandomize=True, max_examples=50)
hypothesis.settings.register_profile("fuzz", PATIENT, print_blob=True)
hypothesis.settings.load_profile("same")

# Kinds and verbs that other packages on this machine add are not ours to test.
for package in entry_points_by_package().keys() - {PACKAGE}:
    del entry_points_by_package()[package]

TOGETHER = (
    ("tests/pipeline/run/engines",),
    ("tests/pipeline/output/test_s3.py",),
    ("tests/pipeline/viewer",),
)
"""What runs in one process, and starts first because it takes longest: tests that start Ray, in two groups, so that at
most two Rays run at a time; and those that share a browser."""


def group_of(node_id: str) -> str:
    return next((group[0] for group in TOGETHER if node_id.startswith(group)), node_id.partition("::")[0])


def rank_of(item: pytest.Item) -> int:
    """The place of an item's group in TOGETHER, or behind all of them."""
    return next(
        (rank for rank, group in enumerate(TOGETHER) if item.nodeid.startswith(group)), len(TOGETHER)
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-messages", action="store_true", help="store the messages of errors: tests/messages.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-messages"):
        is_partial = config.option.keyword or any("::" in argument for argument in config.args)
        if is_partial or getattr(config.option, "numprocesses", None):
            raise pytest.UsageError(
                "--write-messages takes whole files and one process: -n 0, no -k, no ::"
            )
        os.environ["WRITE_MESSAGES"] = "1"


def pytest_sessionfinish() -> None:
    if os.environ.get("WRITE_MESSAGES"):
        from tests.messages import write_messages

        write_messages()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with what takes longest, so that no process waits for another at the end."""
    items.sort(key=rank_of)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Whatever number of threads a test gave torch, the next test has as many as the first one."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def one_name() -> Iterator[None]:
    """No test of this process has imported a module of ours by a second name, which a checkout's root allows."""
    yield
    assert {"pipeline", "stages"} & sys.modules.keys() == set()


@pytest.fixture(scope="session", autouse=True)
def one_pipeline() -> Iterator[None]:
    """Each spaCy pipeline is loaded once for all runs of this process: it takes most of a small run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parsers, "load_pipeline", functools.cache(parsers.load_pipeline))
        yield


@pytest.fixture(scope="session", autouse=True)
def manifests_read_back() -> Iterator[None]:
    """What a run or a merge of this process stores of its configuration is read back as it is, or the run fails."""
    from phrasebox.pipeline.config.run_config import stored_config
    from phrasebox.pipeline.output.manifest import Manifest

    to_json = Manifest.to_json

    def to_read_json(manifest: Manifest, *arguments: Any) -> Json:
        values = json.loads(json.dumps(to_json(manifest, *arguments)))
        assert stored_config(values["config"]).model_dump(mode="json") == values["config"]
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifest, "to_json", to_read_json)
        yield


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    """A simulated CUDA device; the test fails if it saw a buffer change that was still in use."""
    from tests.cuda.simulated import simulated_cuda

    with simulated_cuda() as device:
        yield device
        device.synchronize()
    assert device.faults == []


SCENES = 12
"""Scenes in `scenes_folder` and rows in `inline_dataset`."""


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes as `phrasebox scenes` writes them. Only to be read."""
    from phrasebox.pipeline.demo.scenes import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, SCENES, seed=3)
    return folder


@pytest.fixture(scope="session")
def scenes_config(scenes_folder: Path) -> Json:
    """Values of a run over the scenes with the embedded model and the inline engine, without `output`."""
    source = {
        "kind": "jsonl",
        "path": f"{scenes_folder}/captions.jsonl",
        "image_root": f"{scenes_folder}/images",
    }
    return {"input": source, "model": {"name": "demo"}, "engine": {"kind": "inline"}}


@pytest.fixture(scope="session")
def inline_dataset(scenes_config: Json, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of the scenes, three files long. Only to be read: copy it to change it."""
    from rich.console import Console

    from phrasebox.pipeline.config.run_config import RunConfig
    from phrasebox.pipeline.run.run import run

    output = {"path": str(tmp_path_factory.mktemp("inline") / "dataset"), "rows_per_file": 5}
    return run(RunConfig.model_validate({**scenes_config, "output": output}), Console(quiet=True))


@pytest.fixture(scope="session")
def synthetic_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dataset of 500 rows in three shards, made without a model. Only to be read: copy it to change it."""
    from tests.synthetic import write_synthetic

    return write_synthetic(tmp_path_factory.mktemp("synthetic") / "dataset", 500, rows_per_file=180, seed=3)


@pytest.fixture(scope="session")
def storage_environment() -> Iterator[dict[str, str]]:
    """The environment in which `s3://bucket/...` is a server that the tests start."""
    from tests.object_storage import object_storage

    with object_storage() as environment:
        yield environment


@pytest.fixture(scope="module")
def storage(storage_environment: dict[str, str]) -> Iterator[None]:
    """Object storage in this process and those that it starts."""
    from phrasebox.stages.files.storage import _arrow_filesystem

    with pytest.MonkeyPatch.context() as patch:
        for name, value in storage_environment.items():
            patch.setenv(name, value)
        _arrow_filesystem.cache_clear()
        yield
    _arrow_filesystem.cache_clear()
