"""What goes wrong around the ray engine's workers: they die, their code differs, the disk is full."""

from __future__ import annotations

import pytest

from tests.pipeline.light import light_run, rows_of, write_captions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


def test_a_sample_that_kills_its_worker_becomes_a_row_and_its_neighbours_are_unharmed(tmp_path) -> None:
    """c7 always kills, c50 once: its batch is tried one by one, and it passes."""
    captions = ["cat"] * 100
    captions[7], captions[50] = "die", "die 1"
    report = light_run(write_captions(tmp_path, captions), tmp_path / "out")
    rows = {row["sample_id"]: row for row in rows_of(tmp_path / "out")}
    assert len(rows) == 100
    assert report["read"] == 100
    assert {name for name, row in rows.items() if row["error"] is not None} == {"c7"}
    assert rows["c7"]["error"].startswith("worker_died: captions.jsonl:8: 3 workers died at it in phrases")
    assert all(row["phrase_count"] == 1 for name, row in rows.items() if name != "c7")
    assert int((tmp_path / "c7").read_text()) == 4, "once with its batch, three times alone"
    assert int((tmp_path / "c50").read_text()) == 1
