"""Captions of other photographs are noticed without a setting."""

from pathlib import Path

import pytest

from phrasebox.pipeline.demo.photographs import CAPTIONS, FOLDER
from tests.build.datasets import manifest_of
from tests.build.files import read_lines, write_lines
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import called as phrasebox
from tests.pipeline.commands.evaluated import config_of, run_aloud
from tests.pipeline.light import rows_of


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "least", "most"), [(0, 0.0, 0.1), (3, 0.6, 1.0)], ids=["own", "foreign"])
def test_the_bundled_photographs_need_no_setting(
    shift: int, least: float, most: float, tmp_path: Path
) -> None:
    lines = read_lines(CAPTIONS)
    captions = [line.get("captions", line.get("caption")) for line in lines]
    moved = [
        {"id": line["id"], "image": line["image"], "caption": captions[(place + shift) % len(lines)]}
        for place, line in enumerate(lines)
    ]
    write_lines(tmp_path / "captions.jsonl", moved)
    place = {"kind": "jsonl", "path": str(tmp_path / "captions.jsonl"), "image_root": str(FOLDER)}
    dataset, text = run_aloud(config_of(tmp_path, tmp_path / "out", input=place, model={"name": "photo"}))
    rows = rows_of(dataset)
    share = manifest_of(dataset)["config"]["regions"]["absent_share"]
    assert f"images (regions.absent_share: {share})" in text
    assert ("the first images (regions.absent_share: 0.05)\n" in text) == (shift == 0)
    absent = sum(len(row["absent"]) for row in rows) / sum(row["phrase_count"] for row in rows)
    assert least <= absent <= most
    assert all(len(row["caption_score"]) == len(row["captions"]) for row in rows)
    end = f"{absent:.0%} of the phrases are judged not to be in their images"
    assert (end in text) == (shift > 0)
    assert (end in (dataset / "README.md").read_text()) == (shift > 0)
    doubt = manifest_of(dataset)["caption_doubt"]
    assert (doubt is not None) == (shift > 0)
    if doubt is not None:
        captions_by_name = {row["file_name"]: row["captions"] for row in rows}
        assert len(doubt["examples"]) == 2
        for name, caption in doubt["examples"]:
            assert f"    {name}: {caption}\n" in text
            assert any(whole.startswith(caption.rstrip("…")) for whole in captions_by_name[name])
        assert text.endswith(f"{doubt['next_step']}\n")
        assert "Export it" not in text


GERMAN = [
    "Ein Mann fährt mit dem Fahrrad durch die Stadt",
    "Zwei kleine Hunde spielen auf der grünen Wiese",
]
ENGLISH = ["A man rides a bicycle through the town", "Two small dogs are playing on the green meadow"]


def test_a_strict_run_over_captions_in_another_language_fails(tmp_path: Path) -> None:
    names = [line["image"] for line in read_lines(CAPTIONS)[:4]]
    pairs = zip(names, [*GERMAN, GERMAN[0], ENGLISH[0]], strict=True)
    write_lines(tmp_path / "captions.jsonl", [{"image": name, "caption": text} for name, text in pairs])
    out = tmp_path / "out"
    command = ["run", tmp_path / "captions.jsonl", "--images", FOLDER, "--model", "demo", "--out", out]
    code, text, err = phrasebox(*command, "--engine", "inline", "--strict")
    assert code == 1
    assert_message(err)
    assert "75% of the images have a caption in another language than phrases.language" in text
    assert any(f"{name}: {caption}" in text for name, caption in zip(names, GERMAN, strict=False))
    assert phrasebox("validate", out)[0] == 0
    code, text, err = phrasebox(*command, "--engine", "inline")  # it is complete
    assert (code, err) == (0, "")
    assert "another language than phrases.language" in text
    code, _, err = phrasebox(*command, "--engine", "inline", "--strict")
    assert code == 1
    assert_message(err)


def test_a_share_of_absent_phrases_that_is_given_leaves_no_doubt(tmp_path: Path) -> None:
    """Lists of concepts name many things that are not there."""
    names = [line["image"] for line in read_lines(CAPTIONS)[:3]]
    captions = ["a zebra", "a pizza", "a toaster", "an elephant"]
    write_lines(tmp_path / "concepts.jsonl", [{"image": name, "captions": captions} for name in names])
    command = ["run", tmp_path / "concepts.jsonl", "--images", FOLDER, "--model", "photo", "--strict"]
    given = ("--set", "regions.absent_share=0.9")
    code, text, err = phrasebox(*command, "--out", tmp_path / "out", *given)
    assert (code, err) == (0, "")
    assert sum(len(row["absent"]) for row in rows_of(tmp_path / "out")) > 6
    assert "do the captions belong" not in text
    assert "do not seem to belong" not in text
