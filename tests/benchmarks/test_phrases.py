"""Phrases of captions beside those that people marked."""

from pathlib import Path

from benchmarks.photos.phrases import figures_in_words, marked_captions


def test_spans_that_people_marked_are_compared_without_determiners(tmp_path: Path) -> None:
    (tmp_path / "Sentences").mkdir()
    (tmp_path / "Sentences" / "1.txt").write_text(
        "[/EN#7/people A boy] and [/EN#8/animals the two dogs] 's bowl .\n"
        "[/EN#7/people A child] in [/EN#0/notvisual the morning] looks at [/EN#9/other a hat]"
    )
    assert [*marked_captions(tmp_path)] == [
        ("A boy and the two dogs 's bowl .", {(2, 5), (14, 22)}),
        ("A child in the morning looks at a hat", {(2, 7), (34, 37)}),
    ]
    # "two dogs 's bowl" is one phrase of ours: 3 of its 4 phrases are marked ones, and 3 of the 4 marked ones are there
    assert figures_in_words(tmp_path, keep_parts=False) == (
        "2 captions, keep_parts false: F1 0.7500 (precision 0.7500, recall 0.7500)"
    )
