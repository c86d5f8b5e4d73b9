"""The reference covers everything that the code has."""

import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest

from phrasebox.pipeline.commands.cli import VERBS
from phrasebox.pipeline.evaluate.metrics import METRICS
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.stages.contract.errors import ROW_ERRORS
from phrasebox.stages.contract.schema import DATASET_FIELDS, ENTRIES, HEAT_MAP_FIELDS
from phrasebox.stages.explain import EXPLAINERS
from tests import reference
from tests.architecture.source import ROOT, tracked
from tests.pipeline.config.test_run_config import SETTINGS

COLUMNS = [
    column.name for fields in (DATASET_FIELDS, HEAT_MAP_FIELDS, *ENTRIES.values()) for column in fields
]


@cache
def page(name: str) -> str:
    return reference.PAGES[name]()


def test_all_pages_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["generate.py", str(tmp_path)])
    runpy.run_path(str(ROOT / "docs" / "generate.py"), run_name="__main__")
    assert {path.stem for path in tmp_path.iterdir()} == reference.PAGES.keys()
    assert all(path.read_text("utf-8").startswith("# ") for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "form", "entries"),
    [
        ("commands", "## {}\n\n```text\nUsage: phrasebox", VERBS),
        ("dataset", "| `{}` | `", COLUMNS),
        ("export-formats", "\n## {}\n", EXPORTERS),
        ("explainers", "| `{}` | ", EXPLAINERS),
        ("metrics", "| `{}` | ", METRICS),
        ("errors", "| `{}` | ", ROW_ERRORS),
    ],
)
def test_a_page_has_everything(name: str, form: str, entries: list[str]) -> None:
    assert [entry for entry in entries if form.format(entry) not in page(name)] == []


def test_the_configuration_has_every_key_with_its_values() -> None:
    """Keys of export formats are on the page of the formats."""
    text = page("configuration") + page("export-formats")
    rows = set(re.findall(r"^\| `(\w+)` \| ([^|]*[^ |][^|]*)\\?\|", text, re.MULTILINE))
    named = {name for name, _ in rows}
    keys = {name for settings in SETTINGS for name in settings.model_fields}
    sections = {"input", "model", "phrases", "images", "explain", "regions", "source", "engine", "output"}
    sections |= {"data", "recipe", "sam", "kind"}
    assert keys - sections - named == set()


def test_every_explainer_names_its_paper() -> None:
    rows = [line for line in page("explainers").splitlines() if line.startswith("| `")]
    assert [row for row in rows if "https://arxiv.org/abs/" not in row] == []


def test_every_environment_variable_is_explained() -> None:
    text = (ROOT / "docs/reference/environment.md").read_text("utf-8")
    code = "".join(
        path.read_text("utf-8") for name in ("pipeline", "stages") for path in (ROOT / name).rglob("*.py")
    )
    names = re.findall(r"os\.environ(?:\.get|\.setdefault)?[(\[]\"(\w+)\"", code)
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_site_has_a_place_for_every_page() -> None:
    index = (ROOT / "docs/reference/index.md").read_text("utf-8")
    assert [name for name in reference.PAGES if f"\n{name}\n" not in index] == []


@pytest.mark.parametrize("name", sorted(reference.PAGES.keys() - {"commands"}))
def test_a_checkout_has_the_page_as_the_code_makes_it(name: str) -> None:
    """People read them before anything is installed. The page of commands is typer's, and --help prints it."""
    committed = ROOT / "docs" / "reference" / f"{name}.md"
    assert committed.read_text("utf-8") == page(name), "make docs writes it"
    assert committed.relative_to(ROOT).as_posix() in tracked()
