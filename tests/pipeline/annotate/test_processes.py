"""An annotator in other processes and threads, and what it says of what it has not estimated."""

import json
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from phrasebox.pipeline.annotate.annotator import Annotator
from phrasebox.pipeline.annotate.estimates import Estimates
from phrasebox.stages.contract.errors import ConfigError, InputError
from tests.architecture.source import ROOT
from tests.build.datasets import Json
from tests.messages import expect_error

SHOW = """
import pickle, sys
import phrasebox
annotate = pickle.load(open(sys.argv[1], "rb"))
assert "torch" not in sys.modules
print(annotate.schema == phrasebox.Annotator.schema, {"torch", "ray", "spacy", "open_clip"} & set(sys.modules))
"""


def regions_of(annotator: Annotator, row: Json) -> list[Json]:
    (answer,) = annotator([row])
    return [{"phrase": entry["phrase"], "bbox": entry["bbox"]} for entry in answer["annotations"]]


def test_a_pickle_is_small_and_loads_no_model(
    annotator: Annotator, rows: list[Json], tmp_path: Path
) -> None:
    before = pickle.dumps(annotator)
    expected = regions_of(annotator, rows[0])
    content = pickle.dumps(annotator)
    assert content == before, "caches that know a function by its pickle find it again"
    assert len(content) < 20_000
    (tmp_path / "annotator.pickle").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(tmp_path / "annotator.pickle")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True set()\n"
    assert regions_of(pickle.loads(content), rows[0]) == expected


@pytest.mark.slow
def test_processes_and_threads(annotator: Annotator, rows: list[Json]) -> None:
    """A process that is forked from one with a model does not use that."""
    expected = [regions_of(annotator, row) for row in rows[:4]]
    before = annotator._worker()
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda row: regions_of(annotator, row), rows[:4])) == expected
    assert annotator._worker() is before
    annotator._process = os.getpid() + 1
    assert annotator._worker() is not before
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.starmap(regions_of, [(annotator, row) for row in rows[:4]])
    for answer, wanted in zip(answers, expected, strict=True):
        assert [one["phrase"] for one in answer] == [one["phrase"] for one in wanted]
        assert [one["bbox"] for one in answer] == [pytest.approx(one["bbox"], abs=1) for one in wanted]


def test_what_is_not_estimated_is_said_once(
    make_annotator: Callable[..., Annotator], rows: list[Json], caplog: pytest.LogCaptureFixture
) -> None:
    annotate = make_annotator({"absent_share": "auto"})
    with caplog.at_level(logging.WARNING):
        annotate(rows[:1])
        annotate(rows[1:2])
    (record,) = caplog.records
    assert "the share of absent phrases (taken: 0.05)" in record.message
    assert annotate.origins == {
        "presence": "calibration",
        "absent_share": "off",
        "exponent": "calibration",
        "shift": "off",
    }
    assert any("share of absent phrases" in note for note in annotate.notes)
    caplog.clear()
    uncalibrated = make_annotator({"threshold": 0.4, "rule": "fixed", "absent_share": "auto"})
    with caplog.at_level(logging.WARNING):
        uncalibrated(rows[:1])
    assert "presence and the power of the heat" in caplog.records[0].message
    assert set(uncalibrated.origins.values()) == {"off"}
    caplog.clear()
    for regions in ({"absent_share": 0.05}, {"calibration": "none", "exponent": 1.0}):
        assert make_annotator(regions).origins
    assert caplog.records == []


def test_estimates_belong_to_their_model_and_settings(
    make_annotator: Callable[..., Annotator], rows: list[Json], tmp_path: Path
) -> None:
    path = tmp_path / "estimates.json"
    fitted = make_annotator().fit(rows)
    fitted.estimates.save(path)
    assert "estimates" in repr(fitted)
    with expect_error(ConfigError, key="estimates"):
        make_annotator({"min_presence": 0.3}, estimates=path)
    content = json.loads(path.read_text())
    changes = {
        "version": {"phrasebox_version": "0.0.9"},
        "presence": {"presence": "{}"},
        "another": {"rows": 3},
    }
    for change in changes.values():
        path.write_text(json.dumps({**content, **change}))
        with expect_error(ConfigError, key="estimates"):
            Estimates.load(path)
    path.write_text(json.dumps({**content, "model_fingerprint": "other"}))
    other = make_annotator(estimates=path)
    with expect_error(ConfigError, key="estimates"):
        other(rows[:1])
    with expect_error(ConfigError, key="estimates"):
        Estimates.load(tmp_path / "none.json")
    with expect_error(InputError):
        make_annotator().fit([{"image": "1.jpg", "phrases": ["dog"]}])
    with expect_error(ConfigError, key="regions.calibration"):
        make_annotator({"calibration": "generic"})(rows[:1])
    fitting = {"rule": "fitted", "smooth_patches": 1.0, "upsample": "linear", "calibration": "generic"}
    with expect_error(ConfigError, key="regions.calibration"):
        make_annotator(fitting)(rows[:1])
