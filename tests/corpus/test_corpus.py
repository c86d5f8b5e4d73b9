"""Bad input of every kind through the real pipeline: one row each, and no harm to the good rows beside it."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.pipeline.run.run import run
from tests.build.datasets import Json, rows_of
from tests.corpus.goods import meets, row_facts
from tests.corpus.runs import RUNS, Input, good_rows
from tests.messages import assert_message


def dataset_of(source: Input, folder: Path) -> Path:
    values = {
        "input": source.config,
        "model": {"name": "demo", "threads": 1},
        "explain": {"kind": "grad_eclip", "blocks": 1, "image_size": 64},
        "regions": {"calibration": "none"},  # presence would be fitted to what else is in the input
        "engine": {"kind": "inline"},
        "output": {"path": str(folder / "out")},
    }
    return run(RunConfig.model_validate(values), Console(file=StringIO()))


@pytest.fixture(scope="module")
def good_row_of(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """Caption of a good sample -> all that its row says, in a run without any bad sample."""
    folder = tmp_path_factory.mktemp("good")
    rows = rows_of(dataset_of(good_rows(folder), folder))
    assert all(row["annotations"] for row in rows)
    return {row["captions"][0]: row_facts(row) for row in rows}


@pytest.mark.parametrize("name", RUNS)
def test_every_row_comes_to_what_is_wanted_of_it(name: str, good_row_of: Json, tmp_path: Path) -> None:
    """Errors are for people: one line, no addresses, no names of classes, not endless."""
    source = RUNS[name](tmp_path)
    dataset = dataset_of(source, tmp_path)
    assert list(validate(dataset)) == []
    wrong_rows = []
    for wanted, row in zip(source.wanted, rows_of(dataset), strict=True):
        if not meets(row, wanted.outcome, good_row_of.get((row["captions"] or [""])[0])):
            wrong_rows.append((wanted, row["error"], row["error_detail"]))
        text = row["error_detail"] or ""
        assert "\n" not in text.strip() or "\n" in row["sample_id"], text
        assert not any(part in text for part in (" at 0x", "Traceback", "<class", "object at")), text
        assert len(text) < 1000 + len(row["sample_id"]), text
        if text and not wrong_rows:
            assert_message(text.partition(": ")[2])  # behind the place
    assert not wrong_rows
