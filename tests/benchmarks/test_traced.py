"""The trace of a batch of the real size on a GPU that is not there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.guard import NO_COMPILER, has_compiler


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason=NO_COMPILER)
def test_a_trace_counts_what_a_vision_transformer_multiplies() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.traced"], check=True, capture_output=True, text=True
    )
    found = {each["name"]: each["value"] for each in map(json.loads, done.stdout.splitlines())}
    tokens, width, images = 197, 768, 64
    # Per token and block 4 products of width x width in the attention, and 8 in the MLP.
    trunk = 2 * images * (12 * tokens * 12 * width**2 + 196 * 16 * 16 * 3 * width) / 1e12
    for phrases in (8, 16, 24):
        assert found[f"traced_{phrases}_products_bf16"] == pytest.approx(trunk, rel=0.1)
    steps = [found[f"traced_{n + 8}_launches"] - found[f"traced_{n}_launches"] for n in (8, 16)]
    assert steps[0] == pytest.approx(steps[1], rel=0.05), "each further eight phrases cost the same"
    assert 0 < steps[0] < found["traced_8_launches"]
    for what in ("written", "products_fp32", "h100_device", "h100_launching"):
        assert found[f"traced_8_{what}"] < found[f"traced_24_{what}"]
