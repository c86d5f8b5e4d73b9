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
    texts = {}
    for phrases, captions in ((8, 5), (16, 5), (24, 5), (16, 1)):
        products = found[f"traced_{phrases}x{captions}_products_bf16"]
        texts[captions] = products - trunk
        # A caption has 10 to 25 tokens with padding, in 12 blocks of width 512.
        least, most = (2 * images * captions * each * 12 * 12 * 512**2 / 1e12 for each in (10, 25))
        assert trunk * 0.9 + least < products < trunk * 1.02 + most
    assert texts[5] - texts[1] > 2 * images * 4 * 10 * 12 * 12 * 512**2 / 1e12
    steps = [found[f"traced_{n + 8}x5_launches"] - found[f"traced_{n}x5_launches"] for n in (8, 16)]
    assert steps[0] == pytest.approx(steps[1], rel=0.05), "each further eight phrases cost the same"
    assert 0 < steps[0] < found["traced_8x5_launches"]
    assert found["traced_16x1_launches"] < found["traced_16x5_launches"] < 800, (
        "passes and steps, not single texts"
    )
    for what in ("written", "products_fp32", "h100_device", "h100_launching"):
        assert found[f"traced_8x5_{what}"] < found[f"traced_24x5_{what}"]
