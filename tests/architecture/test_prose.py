"""The rules of the pages' English: short sentences and paragraphs, no chains of semicolons, one term for one idea."""

import re
from collections.abc import Iterator

import pytest
from markdown_it import MarkdownIt

from benchmarks.figures import pages
from tests.architecture.source import ROOT, tracked

pytestmark = pytest.mark.taste

MOST_WORDS = {"sentence": 30, "paragraph": 90}

TERMS = {
    r"things?": "object",
    r"drawings?|drawn (scenes?|objects?)": "synthetic scene",
    r"ROC area": "ROC AUC",
    r"(embedded|shipped) (model|calibration)": "bundled",
    r"usual place": "text-only baseline",
    r"(wrong|exchanged) boxes": "shuffled boxes",
    r"verbs?": "command",
    r"figures?": "metric, number or picture",
    r"processor time|work of cores": "CPU time",
    r"beyond chance|within chance": "significant",
    r"somebody|nobody": "someone, no one",
}
"""Pattern -> the term that the pages use for it."""

OTHER_PAGES = ("stages/model/weights/", "pipeline/demo/photographs/", "tests/stored/0.")
"""Cards of models and datasets, and licences, which have forms of their own."""

PAGES = [path for path in tracked() if path.endswith(".md") and not path.startswith(OTHER_PAGES)]


def paragraphs(text: str) -> Iterator[str]:
    """The prose of a page without tables, headings and code blocks; code in a sentence counts as one word."""
    text = re.sub(r"\A---\n.*?^---\n", "", text, flags=re.DOTALL | re.MULTILINE)
    text = pages.MARKED.sub("", text)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for token, before in zip(tokens[1:], tokens, strict=False):
        if token.type == "inline" and before.type == "paragraph_open":
            parts = (
                part.content if part.type == "text" else _word(part.type) for part in token.children or ()
            )
            yield "".join(parts).strip()


def _word(kind: str) -> str:
    return {"code_inline": "CODE", "softbreak": " ", "hardbreak": " "}.get(kind, "")


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?:])[)\"”]?\s+(?=[\"“(]?(?:[A-Z0-9]|phrasebox))", paragraph)


def faults(text: str) -> list[str]:
    """What breaks a rule, each with the words that do."""
    found = []
    for paragraph in paragraphs(text):
        if len(paragraph.split()) > MOST_WORDS["paragraph"]:
            found.append(f"{len(paragraph.split())} words in a paragraph: {paragraph[:60]}")
        for sentence in sentences(paragraph):
            if len(sentence.split()) > MOST_WORDS["sentence"]:
                found.append(f"{len(sentence.split())} words in a sentence: {sentence[:60]}")
            if sentence.count(";") > 1:
                found.append(f"semicolons: {sentence[:60]}")
        for pattern, term in TERMS.items():
            found += [
                f"{match[0]!r}: say {term}" for match in re.finditer(rf"\b({pattern})\b", paragraph, re.I)
            ]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_page_obeys_the_rules(page: str) -> None:
    assert faults((ROOT / page).read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"A sentence of {'many ' * 30}words.", "34 words in a sentence: A sentence of many"),
        ("Short words here. " * 31, "93 words in a paragraph"),
        ("One; two; three.", "semicolons: One; two; three."),
        ("A drawn scene.", "'drawn scene': say synthetic scene"),
    ],
)
def test_a_fault_is_noticed(text: str, fault: str) -> None:
    assert [line.startswith(fault) for line in faults(text)] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "# A thing\n",
        "| a thing |\n|---|\n| a; b; c |\n",
        "```\na thing\n```\n",
        "The key `a; b; thing`.",
        "Anything.",
    ],
)
def test_headings_tables_and_code_are_no_prose(text: str) -> None:
    assert faults(text) == []
