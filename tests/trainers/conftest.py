"""The dataset whose exports the trainers read, and their settings."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainers.scenes import write_scenes


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They are left to `make trainers`; what trainers warn of is not ours to change."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.trainers)
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Only to be read."""
    return write_scenes(tmp_path_factory.mktemp("trainers") / "dataset")


@pytest.fixture(scope="session", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is downloaded, reported or written into the home folder; no trainer is imported yet."""
    folder = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "YOLO_CONFIG_DIR", "MODELSCOPE_CACHE", "FIFTYONE_CONFIG_DIR"):
            patch.setenv(name, folder)
        for name in ("YOLO_OFFLINE", "FIFTYONE_DO_NOT_TRACK", "WANDB_DISABLED"):
            patch.setenv(name, "true")
        yield
