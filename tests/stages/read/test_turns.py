"""Captions in conversations, in lines of JSON and in Parquet."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.stages.read.plan import input_notes
from phrasebox.stages.read.turns import CAPTION_ROLES
from tests.build.datasets import Json
from tests.build.files import write_json
from tests.messages import assert_message
from tests.stages.read.inputs import reader_of, samples_of, write_lines

LLAVA = [
    {"from": "human", "value": "<image>\nDescribe it."},
    {"from": "gpt", "value": "<image>\nA red cup."},
]
CHAT = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A red"}, {"type": "text", "text": "cup."}]},
    {"role": "user", "content": "And behind it?"},
    {"role": "assistant", "content": "A <b>blue</b> wall."},
]


def read(folder: Path, rows: list[Json], **keys: Any) -> list[Any]:
    path = write_lines(
        folder / "in.jsonl", [{"image": f"{number}.jpg", **row} for number, row in enumerate(rows)]
    )
    return samples_of(kind="jsonl", path=str(path), **keys)


@pytest.mark.parametrize(
    ("row", "keys", "captions"),
    [
        ({"conversations": LLAVA}, {}, ("A red cup.",)),
        ({"messages": CHAT}, {}, ("A red cup.", "A <b>blue</b> wall.")),
        ({"messages": CHAT}, {"turns": ["user"]}, ("What is it?", "And behind it?")),
        ({"talk": LLAVA, "caption": "x"}, {"caption": ["caption", "talk"]}, ("x", "A red cup.")),
        ({"conversations": []}, {}, ()),
    ],
)
def test_turns_that_are_captions(row: Json, keys: Json, captions: tuple[str, ...], tmp_path: Path) -> None:
    (sample,) = read(tmp_path, [row], **keys)
    assert (sample.captions, sample.error) == (captions, None)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        (LLAVA[:1], "no_caption"),
        ([*LLAVA, {"value": "x"}], "bad_caption"),
        ([*LLAVA, "x"], "bad_caption"),
        ([{"from": "gpt", "value": 7}], "bad_caption"),
    ],
)
def test_a_conversation_with_a_fault_is_a_row_that_names_it(
    turns: list[Any], reason: str, tmp_path: Path
) -> None:
    bad, good = read(tmp_path, [{"conversations": turns}, {"conversations": LLAVA}])
    assert bad.error is not None
    assert bad.error.reason == reason
    assert_message(bad.error.detail)
    assert good.captions == ("A red cup.",)


def test_parquet_and_lists_in_json_hold_conversations_too_and_the_run_says_which_turns_it_took(
    tmp_path: Path,
) -> None:
    table = pa.table({"image": ["0.jpg"], "conversations": [LLAVA]})
    pq.write_table(table, tmp_path / "in.parquet")
    reader = reader_of(kind="parquet", path=str(tmp_path / "in.parquet"), turns=["human"])
    (sample,) = reader.samples(reader.pieces())
    assert sample.captions == ("Describe it.",)
    assert list(input_notes(reader.pieces(), ["human"])) == [
        "captions are the turns of human in 'conversations' (input.turns)"
    ]
    path = tmp_path / "in.json"
    write_json(path, [{"image": "0.jpg", "messages": CHAT}, {"image": "1.jpg", "caption": ""}])
    reader = reader_of(kind="jsonl", path=str(path))
    assert list(input_notes(reader.pieces(), CAPTION_ROLES)) == [
        "captions are the turns of gpt or assistant in 'messages' (input.turns)"
    ]
    assert next(reader.samples(reader.pieces())).captions == ("A red cup.", "A <b>blue</b> wall.")
