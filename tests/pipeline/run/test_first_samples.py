"""The first samples of a run, which decide how it goes on, come from all of its input."""

from itertools import chain
from pathlib import Path

import pytest

from phrasebox.pipeline.run.warm_up import first_samples
from phrasebox.stages.contract.records import Sample
from phrasebox.stages.read import make_reader
from phrasebox.stages.read.jsonl import JsonlInput
from tests.build.files import write_lines


def samples_of(folder: Path, pieces: int, most: int) -> list[Sample]:
    """The first samples of files with ten captions each."""
    for number in range(pieces):
        lines = [{"id": f"{number}-{line}", "image": "x.jpg", "caption": "a dog"} for line in range(10)]
        write_lines(folder / f"{number:02}.jsonl", lines)
    reader = make_reader(JsonlInput(path=str(folder)))
    return [*first_samples(reader, reader.pieces(), most)]


@pytest.mark.parametrize(
    ("pieces", "chosen"),
    [
        (1, [0]),
        (2, [0, 1]),
        (4, [0, 1, 2, 3]),
        (7, [0, 2, 4, 6]),
        (11, [0, 3, 7, 10]),
        (40, [0, 13, 26, 39]),
    ],
)
def test_they_come_from_the_start_to_the_end_of_the_input(
    pieces: int, chosen: list[int], tmp_path: Path
) -> None:
    most = 2 * len(chosen)
    expected = chain.from_iterable((f"{number}-0", f"{number}-1") for number in chosen)
    assert [sample.sample_id for sample in samples_of(tmp_path, pieces, most)] == [*expected]


def test_other_pieces_follow_where_these_have_too_few(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, 6, 50)
    assert len({sample.sample_id for sample in samples}) == len(samples) == 50
