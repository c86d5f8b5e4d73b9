"""Phrases from before a run."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from phrasebox.pipeline.commands.phrases import phrases_json
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.precomputed import PrecomputedPhrases
from phrasebox.stages.phrases.stage import PhrasesStage
from tests.build.datasets import Json
from tests.build.files import write_lines
from tests.messages import expect_error

CAPTIONS = (
    ("The old Dog sleeps.", " ", "Two cats on the  old dog"),
    ("Ein kleiner Hund spielt im Schnee mit einem Ball", "A red car"),
    ("A woman in a black coat, a boy's hat & three <b>balloons</b>",),
)


def records(*captions: tuple[str, ...]) -> list[Record]:
    return [
        Record(sample=Sample(sample_id=str(n), source="test", captions=texts))
        for n, texts in enumerate(captions)
    ]


def written(path: Path, *captions: str, more: tuple[Any, ...] = ()) -> Path:
    """A file with the phrases of captions as they are parsed, and more lines."""
    lines = [*phrases_json(captions, PhrasesConfig()), *more]
    write_lines(path, lines)
    return path


def answers(phrases: PrecomputedPhrases | None, **settings: Any) -> tuple[PhrasesStage, list[Record]]:
    stage = pickle.loads(
        pickle.dumps(PhrasesStage(PhrasesConfig(**settings), phrases))
    )  # as it reaches a worker
    stage.setup()
    return stage, stage.process(records(*CAPTIONS))


@pytest.mark.parametrize("settings", [{}, {"max_phrases": 2}, {"languages": ["en"]}], ids=str)
@pytest.mark.parametrize("lines", [6, 3, 0])
def test_the_answers_are_those_of_parsing(settings: Json, lines: int, tmp_path: Path) -> None:
    """Whether the file has all captions, some or none."""
    captions = [caption for texts in CAPTIONS for caption in texts]
    phrases = PrecomputedPhrases.read(written(tmp_path / "phrases.jsonl", *captions[:lines]))
    assert answers(phrases, **settings)[1] == answers(None, **settings)[1]


def test_the_parser_is_not_loaded_for_captions_of_the_file(tmp_path: Path) -> None:
    phrases = PrecomputedPhrases.read(written(tmp_path / "phrases.jsonl", *CAPTIONS[0]))
    stage = PhrasesStage(PhrasesConfig(spacy_models={"en": "not_there"}), phrases)
    stage.setup()
    (record,) = stage.process(records(CAPTIONS[0]))
    assert [phrase.text for phrase in record.phrases] == ["old dog", "two cats", "old dog"]


def test_a_correction_at_the_end_counts(tmp_path: Path) -> None:
    corrected = {
        "caption": "A red car",
        "phrases": [{"text": " Red  CARS", "start": 2, "end": 9, "plural": True}],
    }
    phrases = PrecomputedPhrases.read(written(tmp_path / "phrases.jsonl", "A red car", more=(corrected,)))
    (phrase,) = answers(phrases)[1][1].phrases[-1:]
    assert (phrase.text, phrase.head, phrase.plural, phrase.caption_index) == ("red cars", "cars", True, 1)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "2: Invalid JSON: EOF while parsing an object"),
        ('{"caption": "a cat", "phrases": ["cat"]}', "2: phrases: expected a list of objects"),
        ('{"caption": "a cat"}', "2: phrases: Field required"),
        (
            '{"caption": "a cat", "phrases": [{"text": "cat", "start": 2}]}',
            "2: phrases[0].end: Field required",
        ),
        ('{"caption": "a cat", "phrases": [{"text": "cat", "start": 2, "end": 6}]}', "2: expected 0 <= s"),
        (
            '{"caption": "a cat", "phrases": [{"text": " ", "start": 2, "end": 5}]}',
            "2: phrases[0]: expected a non-e",
        ),
        (
            '{"caption": "a cat", "phrases": [{"word": "cat", "start": 2, "end": 5}]}',
            "2: phrases[0]: expected a non-e",
        ),
    ],
)
def test_a_wrong_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "phrases.jsonl"
    path.write_text(f'{{"caption": "", "phrases": []}}\n{line}\n')
    with pytest.raises(InputError) as raised:
        PrecomputedPhrases.read(path)
    assert str(raised.value).startswith(f"input.phrases: {path}:{problem}")


def test_a_file_that_is_gone_or_another_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path / "phrases.jsonl", "A red car", "A blue car")
    phrases = PrecomputedPhrases.read(path)
    written(path, "A blue car", "A red car")
    with expect_error(InputError, key="input.phrases"):
        phrases.of("A red car")
    path.unlink()
    with expect_error(InputError, key="input.phrases"):
        phrases.of("A red car")
    with expect_error(InputError, key="input.phrases"):
        PrecomputedPhrases.read(path)
