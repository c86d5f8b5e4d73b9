import pytest
from hypothesis import given
from hypothesis import strategies as st

from phrasebox.stages.phrases.filters import is_code, make_readable, normalise, word_lists

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("The Old  MAN", "old man"),
        ("his\n\tred\u00a0hat", "red hat"),
        ("a man 's arm", "man's arm"),
        ("John's bicycle", "john's bicycle"),
        ("some newspapers", "newspapers"),
        ("all the people", "people"),
        ("two dogs", "two dogs"),
        ("\u201cstop\u201d sign,", "stop\u201d sign"),
        ("fish &amp; chips", "fish & chips"),
        ("a <b class='x'>red</b> car &lt;br&gt;", "red car"),
        ("Stra\u00dfe", "strasse"),
        ("dog\u200b", "dog"),
        ("red\x00car\ud800", "red car"),
        ("the", "the"),
        ("...", ""),
        ("", ""),
        ("\U0001f436", ""),
        ("a **red** `car`", "red car"),
    ],
)
def test_normalise(words, text):
    assert normalise(words) == text


@given(ANY_TEXT)
def test_normalise_is_idempotent_and_clean(words):
    text = normalise(words)
    assert normalise(text) == text
    assert text == " ".join(text.split())
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("A dog on grass.", "A dog on grass."),
        ("Man Riding A Horse In The Desert", "man riding a horse in the desert"),
        ("A MAN AND HIS HORSE", "a man and his horse"),
        ("Golden Retriever", "Golden Retriever"),
        ("A man in New York City", "A man in New York City"),
        ("two  dogs\t run", "two dogs run"),
        ("see http://a.b/c.jpg or www.x.org now", "see . or . now"),
        ("mail me@x.org @someone", "mail . . "),
        ("IMG_1234.JPG DSC0001 my cat", "my cat"),
        ("the_dog-1.png of a dog", "of a dog"),
        ("<b class='x'>red car</b> &amp; truck", "red car & truck"),
        ("<p>a dog</p><br>a <i>big</i> cat", "a dog . . a big cat"),
        ("dog&#39;s", "dog's"),
        ("#dog #cat", ", dog , cat"),
        ("number #8", "number #8"),
        ("dog \U0001f60d\ufe0f beach", "dog , beach"),
        ("Dog | Beach - stock", "Dog , Beach , stock"),
        ("a t-shirt", "a t-shirt"),
        ("Two dogs\nA cat", "Two dogs . A cat"),
        ("Two foxes on\nthe pebbles\n", "Two foxes on the pebbles "),
        ("soft\u00adhyphen", "softhyphen"),
        ("a\x00b\ud800c", "a b c"),
        ("x" * 101 + " dog", "dog"),
        ("", ""),
        (" ", ""),
        (
            "<image>\n**A man** in a __red__ coat.\n\n## Left\n1. A dog\n- a bird",
            "A man in a red coat. Left . A dog . , a bird",
        ),
        ("<ref>a dog</ref><box>[[1,2,3,4]]</box> runs", "a dog runs"),
        (
            "<|object_ref_start|>a dog<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> runs",
            "a dog runs",
        ),
    ],
)
def test_readable(caption, text):
    assert make_readable(caption).text == text


@pytest.mark.parametrize(
    "part", ["www.a", "x.jpg", "http://a", "a@b.c", "@a", "img 123", "x" * 101, "<b>", "&amp;"]
)
@pytest.mark.parametrize("whole", ["{}", "a dog {}", "{} a dog", "a dog.{}", "'{}' dog, cat"])
def test_what_is_no_word_is_removed_wherever_it_stands(part, whole):
    assert part not in make_readable(whole.format(part)).text


@given(ANY_TEXT)
def test_readable_leads_back_to_the_caption(caption):
    result = make_readable(caption)
    result.text.encode("utf-8")
    before = 0
    for index, letter in enumerate(result.text):
        start, end = result.span(index, index + 1)
        assert 0 <= start <= end <= len(caption)
        assert start >= before
        before = start
        if letter.isalnum() and "&" not in caption:
            assert caption[start:end].lower() == letter.lower()


def test_codes():
    codes = ["2019", "d90", "1080p", "x-100", "8", "?", "f/2.8"]
    words = ["dog", "b", "a-frame", "iphone6", "r\u00e9sum\u00e9"]
    assert list(filter(is_code, [*codes, *words])) == codes


def test_the_packaged_lists_and_changes_to_them():
    lists = word_lists()
    assert {"time", "background", "in front", "at camera"} <= lists.drop
    assert {"photo", "picture", "front", "top", "side"} <= lists.frame
    assert {"group", "pair", "kind"} <= lists.quantity
    sections = [getattr(lists, name) for name in lists.__dataclass_fields__]
    assert all(entry == entry.casefold().strip() for section in sections for entry in section)
    changed = word_lists(add=["Table", "time"], keep=["TIME"])
    assert "table" in changed.drop
    assert "time" not in changed.drop, "keep wins"
