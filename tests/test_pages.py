"""The blocks of the pages run as they are printed there, in the folder of someone who has the bundled photographs."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from phrasebox.pipeline.commands import cli
from phrasebox.pipeline.dataset.reviews import REVIEWS_FILE
from phrasebox.pipeline.demo.photographs import FOLDER
from tests.architecture.source import ROOT, tracked
from tests.build.datasets import Json
from tests.build.files import read_json
from tests.pipeline.reviewer import review

BLOCK = re.compile(
    r"^( *)(<!-- not run: (?P<reason>.+?) -->\n *)?```(?P<language>\w*)\n(?P<text>.*?)^\1```$", re.S | re.M
)
DIRECTIVE = re.compile(r"^( *)```\{.*?^\1```$", re.DOTALL | re.MULTILINE)
RUN = ("sh", "python")
SHOWN = ("json", "yaml", "toml", "text", "bibtex")  # languages of what is no command
OTHER = (
    "docs/how-to/extend.md",
    "pipeline/",
    "stages/",
    "CHANGELOG.md",
    "tests/stored/",
)  # tested elsewhere, or no pages of the site

QUICK = (
    "README.md",
    "docs/how-to/export.md",
    "docs/how-to/load-in-python.md",
    "docs/how-to/troubleshooting.md",
)
"""Pages whose blocks run in `make test`. The others run in `make faults`."""


@dataclass(frozen=True)
class Block:
    """A code block of a page; `reason` says why it does not run."""

    language: str
    text: str
    reason: str | None


def blocks(page: str) -> list[Block]:
    text = DIRECTIVE.sub("", (ROOT / page).read_text("utf-8"))
    found = [Block(match["language"], match["text"], match["reason"]) for match in BLOCK.finditer(text)]
    assert len(found) == text.count("```") // 2, f"{page}: a block in another form"
    return found


PAGES = [
    pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)
    for page in tracked()
    if page.endswith(".md") and not page.startswith(OTHER) and any(b.language in RUN for b in blocks(page))
]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, captions, ground truth, presets, and a dataset of them."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(
        FOLDER, folder / "photos", ignore=shutil.ignore_patterns("*.py", "*.md", "*.json*", "__pycache__")
    )
    for name in ("captions.jsonl", "truth.json"):
        shutil.copy(FOLDER / name, folder)
    (folder / "configs").symlink_to(ROOT / "configs")
    before = Path.cwd()
    os.chdir(folder)
    try:
        command("phrasebox run captions.jsonl --images photos/ --model photo --out out/")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def reader(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be in that folder, and leave it as it was: a dataset is of the paths that it was made with."""
    monkeypatch.chdir(prepared)
    before = set(prepared.iterdir())
    yield
    for path in set(prepared.iterdir()) - before:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (prepared / "out" / REVIEWS_FILE).unlink(missing_ok=True)


def command(line: str) -> None:
    """Run a command line in this process."""
    program, *arguments = shlex.split(line, comments=True)
    assert program == "phrasebox", f"not a command of phrasebox, so it needs a mark: {line}"
    arguments_before, sys.argv = sys.argv, [program, *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        if stop.code:
            raise AssertionError(f"exit code {stop.code}: {line}") from stop
    finally:
        sys.argv = arguments_before


def answer(block: Block) -> None:
    """Review regions in the place of a person, where a block that does not run asks for it."""
    for dataset in re.findall(r"phrasebox inspect (\S+) --review\b", block.text):
        truth = Path("scenes/truth.json")
        if Path(dataset).exists():
            review(Path(dataset), truth if truth.exists() else Path("truth.json"), 200)


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, reader: None) -> None:
    names: Json = {}
    for block in blocks(page):
        if block.reason is not None:
            answer(block)
        elif block.language == "sh":
            for line in filter(None, map(str.strip, block.text.replace("\\\n", " ").splitlines())):
                command(line)
        elif block.language == "python":
            exec(block.text, names)


@pytest.mark.parametrize(
    "page", [page for page in tracked() if page.endswith(".md") and not page.startswith(OTHER)]
)
def test_a_block_names_its_language(page: str) -> None:
    assert {block.language for block in blocks(page)} <= {*RUN, *SHOWN}


@pytest.mark.parametrize("page", [page for page in tracked() if page.endswith(".md")])
def test_links_lead_to_files(page: str) -> None:
    """Those of people who read the pages in the repository; the site's are checked as it is built."""
    links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", (ROOT / page).read_text("utf-8"))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


def test_the_notebook_runs(prepared: Path) -> None:
    notebook = read_json(ROOT / "docs/tutorials/one-image.ipynb")
    names: Json = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    pictures = [
        output for cell in notebook["cells"] for output in cell.get("outputs", ()) if "data" in output
    ]
    assert sum("image/jpeg" in output["data"] for output in pictures) == 3
    assert len(names["located"].phrases) == 2
