"""Damage at random places and values of any kind: always a row each, never a crash, never a wrong neighbour."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phrasebox.stages.contract.errors import ROW_ERRORS, InputError
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.read import SkippedRow
from tests.build.datasets import Json
from tests.corpus.goods import good
from tests.corpus.tables import MANY
from tests.stages.read.inputs import read_all

BOUNDED = settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def samples(kind: str, path: Path, **keys: Any) -> list[Sample]:
    """All samples of an input, after the checks that hold for any."""
    items = [
        item for item in read_all(kind=kind, path=str(path), **keys) if not isinstance(item, SkippedRow)
    ]
    assert len({sample.sample_id for sample in items}) == len(items)
    for sample in items:
        assert sample.error is None or (sample.error.reason in ROW_ERRORS and sample.error.detail)
        json.dumps([sample.sample_id, sample.source, sample.image.file_name]).encode("utf-8")
    return items


@pytest.mark.slow
@BOUNDED
@given(st.integers(0, len(MANY) - 1), st.binary(min_size=1, max_size=40) | st.none())
def test_parquet_cut_or_with_other_bytes(tmp_path: Path, place: int, new: bytes | None) -> None:
    (tmp_path / "a.parquet").write_bytes(
        MANY[:place] if new is None else MANY[:place] + new + MANY[place + len(new) :]
    )
    (tmp_path / "b.parquet").write_bytes(MANY)
    try:
        items = samples("parquet", tmp_path)
    except InputError as error:  # the columns have other names
        assert "a.parquet" in str(error)  # noqa: PT017
        return
    beside = [sample for sample in items if sample.source.startswith("b.parquet")]
    assert [sample.image.content for sample in beside] == [good(number).image for number in range(3)]
    assert all(sample.error is None for sample in beside)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats()
VALUES = st.recursive(
    PLAIN | st.text(max_size=200) | st.text("\ud800\udc00\0\n", max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ROW = st.fixed_dictionaries(
    {}, optional={"image": VALUES, "caption": VALUES, "id": VALUES, "captions": VALUES}
)


@pytest.mark.slow
@BOUNDED
@given(st.lists(ROW, min_size=1, max_size=8))
def test_any_values_in_rows(tmp_path: Path, rows: list[Json]) -> None:
    beside = {"image": "good.jpg", "caption": "a red cat", "id": "a good row"}
    lines = [json.dumps(row) for row in [beside, *rows, {**beside, "id": "another good row"}]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    first, *others, last = samples("jsonl", tmp_path / "a.jsonl")
    assert len(others) == len(rows)
    assert first.captions == last.captions == ("a red cat",)


MEMORY = """
import io, sys
from PIL import Image
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.images.decode import decode_resized
side = 2000
stream = io.BytesIO()
kind, mode = sys.argv[1:]
image = Image.new(mode, (side, side))
options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
image.save(stream, kind, **options)
del image
content = stream.getvalue()
def peak():  # of this moment on: the kernel's own mark is set back
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak()
decode_resized(content, DecodeLimits(), lambda width, height: (64, 64))
print((peak() - before) / side**2)
"""


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("TIFF", "RGB")])
def test_memory_is_bounded_by_the_header(kind: str, mode: str) -> None:
    """At most 16 bytes a pixel, as `images/decode.py` says: a small file of the most pixels allowed takes 2 GB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind, mode], capture_output=True, text=True, check=True
    )
    assert 3 <= float(done.stdout) <= 16.5
