"""The libraries that `phrasebox --help`, the help of verbs and the light verbs load: each second is everyone's."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.architecture.source import PACKAGES
from tests.pipeline.commands.evaluated import printed
from tests.pipeline.export.datasets import write_dataset

HEAVY = (
    "torch",
    "ray",
    "open_clip",
    "spacy",
    "cv2",
    "datasets",
    "pandas",
    "duckdb",
    "starlette",
    "uvicorn",
    "jinja2",
)

MODEL = {"torch", "ray", "open_clip", "spacy"}

VERBS = [
    "run", "validate", "inspect", "stats", "phrases", "explain", "scenes", "demo", "eval", "calibrate", "export",
    "models", "compare", "merge", "score-model",
]  # fmt: skip

EXPORT_ALL = """
from phrasebox.pipeline.export import EXPORTERS
for name in EXPORTERS:
    if name != "clipself":
        phrasebox("export", "exported", "--format", name, "--out", name)
"""
"""Every format but the one that embeds texts."""

RUN = "run scenes/captions.jsonl --images scenes/images --model demo --engine inline --limit 2 --out made"

MISTAKES = [
    "run none.jsonl --model demo",
    "run scenes/captions.jsonl --images none --model demo",
    "run scenes/captions.jsonl --images dataset --model demo",
    "run scenes/captions.jsonl --images scenes/images",
    "run scenes/captions.jsonl --images scenes/images --model ViT-B-17/openai",
    "run scenes/captions.jsonl --images scenes/images --model none.pt",
    "run scenes/captions.jsonl --images scenes/images --model undescribed.pt",
    "run scenes/captions.jsonl --model demo --set explain.blok=1",
    f"{RUN} --set explain.blocks=2",
    f"{RUN} --set regions.group=none",
    "plan none.jsonl --model demo",
    "compare none.jsonl --model demo",
    "compare scenes/captions.jsonl --images scenes/images --model demo --truth none.json",
    "score-model none.pt --data scenes/captions.jsonl --images scenes/images",
    "explain none.jpg --phrase dog --model demo",
    "explain none.jpg --phrase dog --model none.pt",
    "phrases none.jsonl --out phrases.jsonl",
    "finetune none --out tuned --model demo",
    "finetune dataset --out tuned --model none.pt",
    "finetune dataset --out tuned --model demo --set epoch=1",
    "eval dataset --truth none.json",
    "eval dataset --truth truth.json --set input.image_root=none --set explain.blocks=1",
    "calibrate dataset --truth none.json --out fit.json",
    "calibrate none --out fit.json",
    "inspect none",
    "export none --format coco --out coco",
    "models check none.pt",
]
"""Commands that are refused."""

EVALUATE = """
from phrasebox.pipeline.evaluate import estimates
estimates._draws = lambda count, _, draws=estimates._draws: draws(count, 50)
from phrasebox.pipeline.evaluate.evaluation import evaluate_dataset
from phrasebox.pipeline.evaluate.evaluation_set import open_evaluation_set
from phrasebox.pipeline.terminal import errors
evaluation_set = open_evaluation_set(pathlib.Path("dataset"), pathlib.Path("truth.json"), ["regions.upsample=linear"])
figures = evaluate_dataset(evaluation_set, errors)
assert figures.maps == "stored"
"""

STEPS: dict[str, tuple[str, set[str]]] = {
    "--version": ("phrasebox('--version')", set(HEAVY)),
    "--help": ("phrasebox('--help')", set(HEAVY)),
    **{f"{verb} --help": (f"phrasebox('{verb}', '--help')", MODEL) for verb in VERBS},
    "stats": ("phrasebox('stats', 'dataset')", MODEL),
    "a configuration": ("import phrasebox.pipeline.config.run_config", MODEL),
    "looking at a dataset": ("import phrasebox.pipeline.viewer.app", MODEL),
    "validate": ("phrasebox('validate', 'dataset')", MODEL),
    "exports": (EXPORT_ALL, MODEL | {"datasets"}),
    "eval of a dataset with heat maps": (EVALUATE, MODEL),
    **{command: (f"assert phrasebox(*{command.split()}) == 2", MODEL) for command in MISTAKES},
    "a run that is complete": (f"assert phrasebox(*{RUN.split()}) is None", MODEL),
    "planning a run": (
        "import phrasebox.pipeline.output.dataset_folder, phrasebox.pipeline.output.report\n"
        "import phrasebox.pipeline.run.steps, phrasebox.pipeline.run.run",
        {"ray", "spacy"},
    ),
    "the inline engine": (
        "import phrasebox.pipeline.run.engines.inline, phrasebox.pipeline.commands.explain\n"
        "import phrasebox.pipeline.commands.demo",
        {"ray"},
    ),
}
"""What a process does -> the code, and the libraries that it must not need. From light to heavy, as one process does
all of it: a step that loads too much is the first that fails.
"""

PROGRAM = """
import contextlib, json, pathlib, sys

def phrasebox(*arguments):
    from phrasebox.pipeline.commands.cli import main
    sys.argv = ["phrasebox", *arguments]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            main()
        except SystemExit as stop:
            return stop.code or None

steps, heavy = json.loads(sys.argv[1])
for name, code in steps.items():
    exec(code, {"phrasebox": phrasebox, "pathlib": pathlib})
    print(json.dumps([name, [library for library in heavy if library in sys.modules]]), flush=True)
"""


def loaded(steps: dict[str, str], folder: Path) -> dict[str, set[str]]:
    """Step -> heavy libraries, and our folders as packages of their own, in `sys.modules` after it.

    A fresh process does one after the other.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([steps, (*HEAVY, *PACKAGES)])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: set(libraries) for name, libraries in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def after(
    inline_dataset: Path, scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, set[str]]:
    """Step -> what is loaded after it."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "dataset").symlink_to(inline_dataset)
    (folder / "truth.json").symlink_to(scenes_folder / "truth.json")
    (folder / "scenes").symlink_to(scenes_folder)
    write_dataset(folder / "exported")
    torch.save({"weight": torch.zeros(2)}, folder / "undescribed.pt")
    with contextlib.chdir(folder):
        printed(*RUN.split())
    found = loaded({name: code for name, (code, _) in STEPS.items()}, folder)
    assert (folder / "yolo" / "data.yaml").is_file()
    return found


@pytest.mark.parametrize("step", STEPS)
def test_nothing_heavy_is_loaded_without_need(step: str, after: dict[str, set[str]]) -> None:
    assert after[step] & STEPS[step][1] == set()


def test_a_module_of_ours_has_one_name(after: dict[str, set[str]]) -> None:
    """In a checkout, a module could be imported below `stages` alone, too, and would be there twice."""
    assert {step for step, names in after.items() if names & set(PACKAGES)} == set()


def test_workers_that_read_and_finish_load_no_model(tmp_path: Path) -> None:
    """Seconds of it would be seconds of each."""
    found = loaded({"engine": "import phrasebox.pipeline.run.engines.ray_data"}, tmp_path)
    assert not found["engine"] & {"torch", "open_clip", "spacy"}
