"""Everything but a run in several processes works where Ray is not installed: `ray` is an extra."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from phrasebox.pipeline.config.run_config import EngineConfig
from phrasebox.pipeline.run import engines
from phrasebox.pipeline.run.engines import check_engine, choose_engine, engine_in_words
from phrasebox.stages.contract.errors import ConfigError
from tests.architecture.source import ROOT
from tests.messages import assert_message, expect_error

LARGE = engines.AT_MOST_INLINE_ON_TWO_CORES + 1

PROGRAM = """
import importlib.util, pathlib, sys
assert importlib.util.find_spec("ray") is None

import phrasebox
from phrasebox.pipeline.commands.cli import main
from phrasebox.pipeline.run import engines

engines.AT_MOST_INLINE = engines.AT_MOST_INLINE_ON_TWO_CORES = 1

def command(*arguments):
    sys.argv = ["phrasebox", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0

run = ["run", "scenes/captions.jsonl", "--images", "scenes/images", "--model", "demo", "--limit", "2"]
assert command(*run, "--out", "made", "--engine", "ray") == 2
assert not pathlib.Path("made").exists()
assert command(*run, "--out", "made") == 0
assert command("export", "made", "--format", "coco", "--out", "coco") == 0
assert command("validate", "made") == 0
import phrasebox.pipeline.viewer.app
dataset = phrasebox.open_dataset("made")
assert dataset.regions().num_rows > 0
assert len(list(phrasebox.RegionStream("made"))) == 2
annotate = phrasebox.Annotator("demo", input={"image_root": "scenes/images"}, regions={"absent_share": 0.05})
rows = dataset.regions(columns=["file_name", "phrase"]).to_pylist()[:1]
answers = annotate([{"image": row["file_name"], "caption": row["phrase"]} for row in rows])
assert [answer["error"] for answer in answers] == [None]
assert "ray" not in sys.modules
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed packages without Ray, as links."""
    folder = tmp_path_factory.mktemp("packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name != "ray" and not path.name.startswith("ray-"):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.slow
def test_a_run_and_what_uses_its_dataset(packages: Path, scenes_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes").symlink_to(scenes_folder)
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        cwd=tmp_path,
        env={
            "PYTHONPATH": f"{ROOT}:{packages}",
            "HOME": str(tmp_path),
            "COLUMNS": "400",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert (
        "engine: one process, because Ray is not installed: pip install 'phrasebox[ray]', for several"
        in output
    )
    assert output.count("or set engine.kind=inline") == 1
    assert "Traceback" not in output


@pytest.mark.parametrize("version", [None, "2.59.1", "2.61.0"])
def test_another_version_is_as_good_as_none(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a pipeline of other people, whose private parts were not seen."""

    def installed(_: str) -> str:
        if version is None:
            raise engines.PackageNotFoundError
        return version

    monkeypatch.setattr(engines, "version", installed)
    auto = EngineConfig()
    assert choose_engine(auto, LARGE).kind == choose_engine(auto, None).kind == "inline"
    assert_message(engine_in_words(auto, choose_engine(auto, LARGE), LARGE))
    assert engine_in_words(auto, choose_engine(auto, 3), 3) == "one process"
    inline = EngineConfig(kind="inline")
    assert engine_in_words(inline, inline, LARGE) == "one process"
    for engine in (EngineConfig(kind="ray"), EngineConfig(address="auto")):
        with expect_error(ConfigError, key="engine.kind"):
            check_engine(engine)
    check_engine(auto)
    check_engine(inline)


def test_with_ray_nothing_is_said() -> None:
    auto = EngineConfig()
    chosen = choose_engine(auto, LARGE)
    assert chosen.kind == "ray"
    assert engine_in_words(auto, chosen, LARGE) == "several processes (Ray)"
    check_engine(EngineConfig(kind="ray"))
