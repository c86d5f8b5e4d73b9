import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import Phrase, Record, Sample
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.filters import normalise
from phrasebox.stages.phrases.stage import PhrasesStage

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)
WORDS = (
    *(
        "a",
        "the",
        "two",
        "black",
        "dog",
        "dogs",
        "man's",
        "in",
        "of",
        "front",
        "photo",
        "and",
        "running",
        "I",
    ),
    *(",", ".", "-", "7", "IMG_1.jpg", "<b>", "&amp;", "\n", "\U0001f436", "#cat"),
)
WORD_SALAD = st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)


def make_record(*captions: str, sample_id: str = "1") -> Record:
    return Record(sample=Sample(sample_id=sample_id, source="test", captions=captions))


def make_stage(**settings) -> PhrasesStage:
    stage = PhrasesStage(PhrasesConfig(**settings))
    stage.setup()
    return stage


def test_phrases_of_all_captions_in_order(stage):
    (record,) = stage.process([make_record("The old Dog sleeps.", " ", "Two cats on the  old dog")])
    assert record.error is None
    assert record.dropped_phrases == 0
    assert record.phrases == (
        Phrase(text="old dog", caption_index=0, start=0, end=11, head="dog"),
        Phrase(text="two cats", caption_index=2, start=0, end=8, head="cat", plural=True),
        Phrase(text="old dog", caption_index=2, start=12, end=24, head="dog"),
    )


@pytest.mark.parametrize(
    ("captions", "error"),
    [
        ((), "no_caption: test: the sample has no caption"),
        ((" \t\n", ""), "no_caption: test: all captions are empty"),
        (("a dog", "a horse"), "bad_caption: test: caption 1 has 7 characters, expected at most 5"),
    ],
)
def test_captions_that_cannot_be_used_are_errors(captions, error):
    wrong, right = make_stage(max_caption_chars=5).process([make_record(*captions), make_record("a dog")])
    assert str(wrong.error).startswith(error)
    assert [phrase.text for phrase in right.phrases] == ["dog"]


LEFT_OUT = "captions in another language than en, left out: "


@pytest.mark.parametrize(
    ("languages", "notes", "indices"),
    [
        (None, ("captions in another language than en: 1 (de), 3 (zh)",), {0, 1}),
        (["en"], (f"{LEFT_OUT}1 (de), 3 (zh)",), {0}),
        (["en", "de"], ("captions in another language than en: 1 (de)", f"{LEFT_OUT}3 (zh)"), {0, 1}),
        (["zh"], ("captions in another language than en: 3 (zh)", f"{LEFT_OUT}1 (de)"), set()),
    ],
)
def test_captions_in_another_language_are_named_and_can_be_left_out(languages, notes, indices):
    chinese = "\u4e24\u53ea\u72d7\u5728\u96ea\u5730\u91cc\u5954\u8dd1"
    captions = ("Two dogs run.", "Ein Hund spielt mit einem Ball im Schnee.", "", chinese)
    (record,) = make_stage(languages=languages).process([make_record(*captions)])
    assert record.notes == notes
    assert {phrase.caption_index for phrase in record.phrases} == indices
    assert record.sample.captions == captions


def test_a_record_with_an_error_passes_untouched(stage):
    broken = Record(sample=make_record("a dog").sample, error=RowError(reason="bad_row", detail="test"))
    answer = stage.process([make_record("a cat"), broken, make_record("a dog")])
    assert answer[1] is broken
    assert [record.phrases[0].text for record in (answer[0], answer[2])] == ["cat", "dog"]


def test_the_cap_counts_unique_texts_and_keeps_their_mentions():
    captions = ("a dog, a cat, a cow", "the cow and the dog", "his cat")
    (record,) = make_stage(max_phrases=2).process([make_record(*captions)])
    assert [phrase.text for phrase in record.phrases] == ["dog", "cat", "dog", "cat"]
    assert (record.dropped_phrases, record.object_numbers) == (2, ())


def test_a_later_stage_that_chooses_gets_more_phrases_and_which_of_them_name_one_object():
    limited = PhrasesStage(PhrasesConfig(max_phrases=2), limits_later=True)
    records = limited.process(
        [make_record("a dog, a cat, a cow", "the cow and the dog"), make_record("a dog, a cat")]
    )
    assert [len(record.phrases) for record in records] == [5, 2]
    assert [record.object_numbers for record in records] == [(0, 1, 2, 2, 0), ()]
    assert {(record.phrase_limit, record.dropped_phrases) for record in records} == {(2, 0)}


def test_settings_reach_the_phrases():
    stage = make_stage(drop_heads_add=["Dog"], drop_heads_keep=["ground"])
    (record,) = stage.process([make_record("A dog and a cat on the ground.")])
    assert [phrase.text for phrase in record.phrases] == ["cat", "ground"]


@pytest.mark.parametrize(
    ("caption", "words", "text"),
    [
        ("Man Riding A Horse In The Desert", ["Man", "A Horse", "The Desert"], ["man", "horse", "desert"]),
        ("IMG_1234.jpg: my  cat", ["my  cat"], ["cat"]),
        ("<b>Red car</b> &amp; blue truck", ["Red car", "blue truck"], ["red car", "blue truck"]),
        ("so much fun @me <b>bold</b> dog", ["bold</b> dog"], ["bold dog"]),
        ("a red <b>car</b><br>my IMG_1234.jpg cat", ["a red <b>car", "cat"], ["red car", "cat"]),
        (
            "cute dog \U0001f60d beach #sunset",
            ["cute dog", "beach", "sunset"],
            ["cute dog", "beach", "sunset"],
        ),
        ("Dog | Beach | Sunset", ["Dog", "Beach", "Sunset"], ["dog", "beach", "sunset"]),
        ("a man 's hat", ["a man 's hat"], ["man's hat"]),
        ("\u05db\u05dc\u05d1 a dog", ["a dog"], ["dog"]),
    ],
)
def test_spans_are_offsets_into_the_untouched_caption(stage, caption, words, text):
    (record,) = stage.process([make_record(caption)])
    phrases = [(caption[phrase.start : phrase.end], phrase.text) for phrase in record.phrases]
    assert [pair for pair in phrases if pair[1].isascii()] == list(zip(words, text, strict=True))


@settings(max_examples=80)
@given(st.lists(st.one_of(ANY_TEXT, WORD_SALAD), max_size=5))
def test_any_text_gives_phrases_whose_spans_are_their_words(stage, captions):
    (record,) = stage.process([make_record(*captions)])
    last = (0, 0)
    for phrase in record.phrases:
        caption = captions[phrase.caption_index]
        assert phrase.end <= len(caption)
        assert normalise(caption[phrase.start : phrase.end]) == phrase.text
        assert phrase.head
        phrase.head.encode("utf-8")
        assert last <= (phrase.caption_index, phrase.start)
        last = (phrase.caption_index, phrase.end)


@settings(max_examples=15)
@given(st.lists(st.lists(WORD_SALAD, max_size=3), max_size=9))
def test_the_answer_does_not_depend_on_the_batch(stage, all_captions):
    records = [
        make_record(*captions, sample_id=str(number)) for number, captions in enumerate(all_captions)
    ]
    singly = [answer for record in records for answer in stage.process([record])]
    sevens = [
        answer
        for start in range(0, len(records), 7)
        for answer in stage.process(records[start : start + 7])
    ]
    assert stage.process(records) == singly == sevens


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_phrases", 0),
        ("max_caption_chars", 0),
        ("drop_heads_add", [" "]),
        ("spacy_models", {"en": ""}),
        ("max_phrase", 1),
        ("languages", ["eng"]),
    ],
)
def test_settings_that_are_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        PhrasesConfig(**{key: value})
