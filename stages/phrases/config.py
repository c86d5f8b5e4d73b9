"""The settings of the phrases stage."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, field_validator

from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.phrases.languages.packages import SPACY_LANGUAGES
from phrasebox.stages.phrases.recognition import LANGUAGES

AUTO: Final = "auto"
"""The language of captions whose languages are recognised one by one."""

Entry = Annotated[str, StringConstraints(strip_whitespace=True, to_lower=True, min_length=1)]
"""A line of the drop list: a lemma, or "preposition lemma"."""


def _check_language(language: str) -> str:
    """Return a code in which spaCy has noun phrases, or `auto` where that is asked for."""
    if language != AUTO and language not in SPACY_LANGUAGES:
        raise ValueError(f"expected auto or one of {', '.join(SPACY_LANGUAGES)}, got {language!r}")
    return language


class PhrasesConfig(BaseModel, extra="forbid", frozen=True):
    """Settings of the phrases stage."""

    language: Annotated[str, AfterValidator(_check_language)] = Field(
        default=ENGLISH_CODE,
        description="Language of the captions, a code such as `en` or `fr` of those for which spaCy has noun phrases; "
        "`auto` recognises the language of each caption, and parses it by the pipeline of that language. A language "
        "whose pipeline is not installed ends the run before it starts. With `auto` its captions are left out, with a "
        "warning that names the package.",
    )
    spacy_models: dict[str, Annotated[str, Field(min_length=1)]] = Field(
        default={},
        description="Language -> an installed spaCy pipeline with parts of speech and lemmatizer, as in "
        "`{fr: fr_core_news_md}`. Other languages take spaCy's small one. English takes a copy of spaCy's "
        "en_core_web_sm 3.8.0 that someone else uploaded to the package index. Nothing is downloaded.",
    )
    max_phrases: int = Field(
        default=32,
        ge=1,
        le=1000,
        description="Most unique texts of phrases per image; the rest is counted. The likeliest text of "
        "every object comes first, then the second likeliest, and so on; where regions do not come from heat maps, "
        "the first in the captions. The five captions of a Flickr30k image have 12 on average and 29 at most (1,000 "
        "images), a caption of 120 words 24.",
    )
    max_caption_chars: int = Field(
        default=10_000,
        ge=1,
        le=100_000,
        description="A longer caption makes its sample a `bad_caption` row; 10,000 characters take about 0.2 s.",
    )
    languages: tuple[str, ...] | None = Field(
        default=None,
        description="Languages whose captions get phrases, as ISO 639 codes such as `[en]`; "
        "null for all. The row's `warnings` name captions plainly in another language than "
        "`phrases.language`; one or two words are seldom plain.",
    )
    keep_parts: bool = Field(
        default=False,
        description='Whether a frame stays with the object it frames: "the side of a house" and "a photo of a house" '
        'are one phrase with the head "house", instead of the phrase "a house". True follows the mark-up of Flickr30k '
        "Entities (F1 on exact spans 95.4 against 94.6 on 5,000 captions of dev); False gives one object one name.",
    )
    drop_heads_add: tuple[Entry, ...] = Field(
        default=(),
        description='Heads to drop besides those of `words.txt`: lemmas, or "preposition lemma" '
        'for bare nouns ("on ground").',
    )
    drop_heads_keep: tuple[Entry, ...] = Field(
        default=(),
        description='Entries of the section [drop] of `words.txt` that are not dropped, e.g. "ground".',
    )

    @field_validator("languages")
    @classmethod
    def _are_languages(cls, languages: tuple[str, ...] | None) -> tuple[str, ...] | None:
        expected = sorted({*LANGUAGES, *SPACY_LANGUAGES})
        if unknown := set(languages or ()).difference(expected):
            raise ValueError(f"expected some of {', '.join(expected)}, got {min(unknown)!r}")
        return languages

    @field_validator("spacy_models")
    @classmethod
    def _are_models(cls, models: dict[str, str]) -> dict[str, str]:
        if unknown := models.keys() - SPACY_LANGUAGES:
            raise ValueError(f"expected some of {', '.join(SPACY_LANGUAGES)}, got {min(unknown)!r}")
        return models

    @property
    def is_mixed(self) -> bool:
        """Whether the language of each caption is recognised."""
        return self.language == AUTO

    @property
    def fixed_language(self) -> str | None:
        """The language of all captions; None if that of each is recognised."""
        return None if self.is_mixed else self.language

    def package_of(self, language: str) -> str | None:
        """Return the spaCy pipeline of a language; None if none is named, and spaCy publishes none."""
        spacy_language = SPACY_LANGUAGES.get(language)
        package = None if spacy_language is None else spacy_language.package
        return self.spacy_models.get(language, package)

    @property
    def packages(self) -> tuple[str, ...]:
        """The spaCy pipelines that may parse captions, installed or not."""
        languages = SPACY_LANGUAGES if self.is_mixed else (self.language,)
        return tuple(package for code in languages if (package := self.package_of(code)) is not None)
