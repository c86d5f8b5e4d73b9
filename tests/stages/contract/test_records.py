import hashlib
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from phrasebox.stages.contract.errors import RowError, RowFault
from phrasebox.stages.contract.records import (
    HeatMap,
    ImageRef,
    Phrase,
    Record,
    Sample,
    stable_id,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 1865147336997338), ("scene-0-000000", 6330526573861826), ("a\n0", 24314453463526)],
)
def test_ids_never_change(text: str, number: int) -> None:
    """They are stored in datasets: a new hash is a new schema version."""
    assert stable_id(text) == number
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert number == int.from_bytes(digest, "big") % (2**53 - 1) + 1


def dog(**changes: Any) -> Phrase:
    return Phrase(**{"text": "dog", "caption_index": 0, "start": 0, "end": 3, "head": "dog", **changes})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dog(start=3, end=3), "expected 0 <= start < end, got 3, 3"),
        (lambda: dog(text=""), "non-empty"),
        (
            lambda: HeatMap(text="a", values=np.zeros(4, np.float32), similarity=0.2),
            r"expected float32 \(grid_h, ",
        ),
    ],
)
def test_values_that_records_reject(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_surrogates_are_written_out_and_in_a_caption_an_error() -> None:
    sample = Sample(sample_id="a\ud800", source="f.jsonl:3", image=ImageRef(file_name="c\udcff"))
    record = Record.start(sample)
    assert (record.sample.sample_id, record.sample.image.file_name) == ("a\\ud800", "c\\udcff")
    assert record.error is None
    record = Record.start(replace(sample, captions=("a dog", "half \ud83d")))
    assert str(record.error) == "bad_caption: f.jsonl:3: the caption holds lone surrogates, not text"
    assert record.sample.captions == ("a dog", "half \\ud83d")
    record = Record.start(replace(sample, image=ImageRef(url="/caf\udce9.jpg")))
    assert str(record.error) == "bad_location: f.jsonl:3: the file's name is not UTF-8: rename it"
    error = RowError(reason="bad_row", detail="b: not JSON")
    assert Record.start(replace(sample, captions=("\ud800",), error=error)).error == error


def test_a_fault_says_what_it_keeps_and_where() -> None:
    fault = pickle.loads(pickle.dumps(RowFault("bad_row", "a: b")))
    assert (str(fault), fault.error) == ("bad_row: a: b", RowError(reason="bad_row", detail="a: b"))
    assert fault.error.at("f.jsonl:3") == RowError(reason="bad_row", detail="f.jsonl:3: a: b")
