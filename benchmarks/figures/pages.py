"""The tables of `docs/benchmarks/*.md`, written from the JSON beside each page.

A page NAME.md marks where a table stands, and NAME.json holds it:

    <!-- table: regions -->
    <!-- end -->

    {"id": "regions", "step": "drawings", "command": "phrasebox eval ...", "commit": "25fedb5", "n": "1,237 phrases",
     "split": "...", "model": "demo", "settings": "...", "columns": ["", "pointing", ["kept", "{:.0f} %"]],
     "rows": [["**defaults**", {"value": 0.947, "low": 0.935, "high": 0.96}, 92]]}

A column is a title, or a title and the format of its numbers (three decimals without one). A cell is null, a text, a
number, {"value", "low", "high"} (an interval), {"value", "worst"}, each with "mark" (+ or -) and "bold" if wanted, or a
list of these, shown with slashes. What nobody recorded is null; `step` names the step of `make figures` that makes the
table.

The page's sentences may state figures that stand in one of its tables, or under "said", where each entry has `about`,
`step`, `command`, `commit` and `values`. "other" lists the numbers that are no figures, each with what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
MEASURED: Final = ROOT / "docs" / "benchmarks"
SHOWN: Final = ("n", "split", "model", "settings")
MARKED: Final = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- end -->\n", re.DOTALL | re.MULTILINE)
CODE: Final = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)|<!--.*?-->", re.DOTALL)
FIGURE: Final = re.compile(
    r"(?<![\w.,])(\d+\.\d+|\d+(?=(?:\sto\s\d+)?\s%))(?![\w.]*\d)(?=((?:\sto\s-?[\d.]+)?\s(?:%|points))?)"
)

Pages = dict[str, dict[str, list[dict[str, Any]]]]  # page -> "tables" and "said"


def contents(page: str) -> dict[str, Any]:
    """Return what NAME.json holds."""
    return dict(json.loads((MEASURED / f"{page}.json").read_text("utf-8")))


def pages() -> list[str]:
    """Return the names of all pages."""
    return sorted(path.stem for path in MEASURED.glob("*.json"))


def put(
    page: str, *, tables: Sequence[Mapping[str, Any]] = (), sentences: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Replace tables by `id` and figures of sentences by `about` in NAME.json, or add them."""
    content = contents(page)
    for part, key, new in (("tables", "id", tables), ("said", "about", sentences)):
        entries = {entry[key]: entry for entry in content.get(part, ())}
        content[part] = list((entries | {entry[key]: dict(entry) for entry in new}).values())
    (MEASURED / f"{page}.json").write_text(as_json(content), encoding="utf-8")


def table(
    name: str, command: str, columns: Sequence[Any], rows: Sequence[Sequence[Any]], **origin: Any
) -> dict[str, Any]:
    """Return a table; origin: n, split, model, settings."""
    empty = dict.fromkeys(("step", "commit", "n", "split", "model", "settings"))
    return {
        "id": name,
        **empty,
        "command": command,
        **origin,
        "columns": list(columns),
        "rows": [list(r) for r in rows],
    }


def as_json(content: Mapping[str, Any]) -> str:
    """Return JSON with a line for each row of a table and each other entry."""

    def flat(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    def table(entry: Mapping[str, Any]) -> str:
        keys = [f"{flat(key)}: {flat(value)}" for key, value in entry.items() if key != "rows"]
        rows = ",\n".join(f"    {flat(row)}" for row in entry["rows"])
        return "  {" + ",\n   ".join([*keys, f'"rows": [\n{rows}\n  ]']) + "}"

    tables = ",\n".join(map(table, content["tables"]))
    sentences = ",\n".join(f"  {flat(entry)}" for entry in content.get("said", ()))
    other = ",\n".join(f"  {flat(key)}: {flat(value)}" for key, value in content.get("other", {}).items())
    return f'{{"tables": [\n{tables}\n],\n"said": [\n{sentences}\n],\n"other": {{\n{other}\n}}}}\n'


def rendered(page: str, text: str) -> str:
    """Return a page's text with its tables as NAME.json has them."""
    tables = {table["id"]: table for table in contents(page)["tables"]}
    return MARKED.sub(
        lambda match: f"<!-- table: {match[1]} -->\n{as_markdown(tables[match[1]])}<!-- end -->\n", text
    )


def as_markdown(table: Mapping[str, Any]) -> str:
    """Return a table in Markdown, and below it what it was measured on."""
    columns = [
        (column, "{:.3f}") if isinstance(column, str) else tuple(column) for column in table["columns"]
    ]
    signed = [any(_below_zero(row[number]) for row in table["rows"]) for number in range(len(columns))]
    lines = [f"| {' | '.join(title for title, _ in columns)} |", f"|{'---|' * len(columns)}"]
    for row in table["rows"]:
        cells = [_cell(*each) for each in zip(row, [how for _, how in columns], signed, strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [str(table[key]) for key in SHOWN if table.get(key)]
    notes.append(f"commit {table['commit']}" if table["commit"] else "commit not recorded")
    return "\n".join(lines) + f"\n\n{' · '.join(notes)}\n"


def _below_zero(cell: Any) -> bool:
    return isinstance(cell, dict) and "low" in cell and cell["low"] is not None and cell["low"] < 0


def _cell(cell: Any, how: str, signed: bool) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    if isinstance(cell, list):
        return " / ".join(_cell(each, how, signed) for each in cell)
    if not isinstance(cell, dict):
        return how.format(cell)
    if cell["value"] is None:
        return ""
    text = how.format(cell["value"]) + cell.get("mark", "")
    if cell.get("low") is not None:
        text += f" ({how.format(cell['low'])}{' to ' if signed else '-'}{how.format(cell['high'])})"
    if "worst" in cell:
        text += f" ({how.format(cell['worst'])})"
    return f"**{text}**" if cell.get("bold") else text


def figures_of(text: str) -> list[str]:
    """Return the decimal numbers and percentages of sentences, as written; those of tables, code and links are none."""
    return [figure for figure, _ in _figures_of(text)]


def _figures_of(text: str) -> list[tuple[str, bool]]:
    """Return the figures, and whether each is a percentage."""
    return [(match[1], bool(match[2])) for match in FIGURE.finditer(CODE.sub("", MARKED.sub("", text)))]


def numbers(value: Any) -> Iterator[float]:
    """Yield all numbers in a value of JSON, also those in its texts."""
    if isinstance(value, dict):
        value = [item for key, item in value.items() if key not in ("command", "commit")]
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, str):
        yield from (float(found.replace(",", "")) for found in re.findall(r"\d[\d,]*(?:\.\d+)?", value))
    elif isinstance(value, int | float):
        yield float(value)


def unknown(text: str, names: Sequence[str], other: Mapping[str, str]) -> list[str]:
    """Return the figures of sentences that, rounded as they are written, are not in the JSON of pages."""
    parts = [contents(name)[key] for name in names for key in ("tables", "said")]
    numbers_stated = {abs(item) for part in parts for item in numbers(part)}

    def is_known(figure: str, is_share: bool) -> bool:
        digits, units = len(figure.partition(".")[2]), (1, 100) if is_share else (1,)
        return any(f"{unit * item:.{digits}f}" == figure for item in numbers_stated for unit in units)

    return [
        figure
        for figure, is_share in _figures_of(text)
        if figure not in other and not is_known(figure, is_share)
    ]


def render() -> None:
    """Write all tables into their pages."""
    for page in pages():
        path = MEASURED / f"{page}.md"
        path.write_text(rendered(page, path.read_text("utf-8")), encoding="utf-8")
