"""A choice of regions, against plain Python over the same rows; and what is no condition."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from phrasebox.pipeline.dataset.selection import Selection, Selector, connect_sandboxed
from phrasebox.stages.contract.errors import ConfigError
from tests.messages import expect_error


@pytest.fixture(scope="module")
def table(whole: Any) -> Any:
    """200 rows over the border of two shards, so in two chunks."""
    return whole.slice(80, 200)


def chosen(table: Any, **selection: Any) -> list[list[int]]:
    """Ids of the chosen regions, row by row."""
    answer = Selector(Selection(**selection)).choose(table)
    return [[region["id"] for region in regions] for regions in answer["annotations"].to_pylist()]


def test_what_is_chosen_stays_as_it_was(table: Any) -> None:
    """All fields of the regions, all other columns, types with their metadata; no row goes."""
    answer = Selector(Selection(where="score > 0.6")).choose(table)
    assert answer.schema.equals(table.schema, check_metadata=True)
    answer.validate(full=True)
    expected = table.to_pylist()
    for row in expected:
        row["annotations"] = [a for a in row["annotations"] if a["score"] > np.float32(0.6)]
    assert answer.to_pylist() == expected


NO_CONDITIONS = {
    "unknown column": ("colour = 'red'", '"colour" not found'),
    "a number of our own": ("row_number < 3", '"row_number" not found'),
    "open comment": ("score > 0.5 /* and", "unterminated"),
    "drop": ("true); DROP TABLE samples; --", "syntax error"),
    "out of its brackets": ("true) OR (true", "syntax error"),
    "parameter": ("score > ?", "parameter"),
    "a variable of Python": (
        "phrase IN (SELECT phrase FROM table_of_python)",
        "table_of_python does not exist",
    ),
    "a file": ("(SELECT count(*) FROM read_text('{secret}')) > 0", "Cannot access file"),
    "the network": ("(SELECT count(*) FROM read_csv('https://localhost:1/a.csv')) > 0", "Error"),
    "no Unicode": ("phrase = '\udcff'", "surrogate"),
}


@pytest.mark.parametrize("name", NO_CONDITIONS)
def test_what_is_no_condition(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said when the selector is made, in one line."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.csv"
    secret.write_text("phrase\ndog\n")
    table_of_python = pa.table({"phrase": ["dog"]})
    where, words = NO_CONDITIONS[name]
    with pytest.raises(ConfigError, match="not an SQL condition: ") as caught:
        Selector(Selection(where=where.replace("{secret}", str(secret)).replace("{folder}", str(tmp_path))))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "caption_index" in str(caught.value), "names the columns"
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert table_of_python.num_rows == 1


@pytest.mark.parametrize("where", ["phrase::INTEGER > 3", "phrase"])
def test_a_condition_that_fails_on_a_value(where: str, table: Any) -> None:
    with expect_error(ConfigError, key="where"):
        Selector(Selection(where=where)).choose(table)


def test_the_sandbox_stays_closed(tmp_path: Path) -> None:
    connection = connect_sandboxed()
    for statement in (
        "SET enable_external_access = true",
        "SET python_enable_replacements = true",
        f"ATTACH '{tmp_path / 'a.duckdb'}'",
    ):
        with pytest.raises(Exception, match=r"Cannot|cannot|disabled|locked"):
            connection.execute(statement)
    assert list(tmp_path.iterdir()) == []
