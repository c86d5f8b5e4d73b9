"""The spaCy pipelines of the languages of captions: each is loaded with the first caption in its language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.filters import WordLists, word_lists
from phrasebox.stages.phrases.languages import grammar_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE, Grammar
from phrasebox.stages.phrases.languages.packages import SPACY_LANGUAGES
from phrasebox.stages.phrases.noun_phrases import ParsedPhrase, extract
from phrasebox.stages.phrases.pipelines import KEY, load_pipeline
from phrasebox.stages.phrases.recognition import identifier, recognise_language

CAPTIONS_PER_STEP: Final = 256  # captions that are parsed at a time

_MAX_VOCABULARY: Final = 300_000
"""spaCy remembers every word it has seen, 0.5 kB each.

Above this number of words the pipeline is loaded again, in less than a second; `memory_zone`
around each batch would also forget the common words."""


class _Parser(NamedTuple):
    """The parser of one language."""

    nlp: Any
    lists: WordLists
    grammar: Grammar


class Parsers:
    """The parsers of the languages of a run."""

    def __init__(self, config: PhrasesConfig) -> None:
        self._config = config
        self._parsers: dict[str, _Parser] = {}
        # Those that have a pipeline, where the language of each caption is recognised.
        self._installed = frozenset(
            code
            for code in SPACY_LANGUAGES
            if code == ENGLISH_CODE or _is_installed(config.package_of(code))
        )

    def load(self) -> None:
        """Load what the first caption needs. Raise ConfigError if it is not installed, or lacks a part."""
        self._parser_of(self._config.fixed_language or ENGLISH_CODE)
        identifier()  # before the first caption, which would wait half a second for it

    def language_of(self, text: str) -> str:
        """Return the language in which a readable text is parsed, or, if it has no parser, the one it is in."""
        return self._config.fixed_language or recognise_language(text, self._installed)

    def has_parser(self, language: str) -> bool:
        """Return whether captions in a language can be parsed."""
        return not self._config.is_mixed or language in self._installed

    def parse(self, texts: Mapping[str, Sequence[str]]) -> dict[str, Iterator[Any]]:
        """Return the parsed texts of each language, in order. Raise as `load`."""
        return {
            language: self._parser_of(language, len(same)).nlp.pipe(same, batch_size=CAPTIONS_PER_STEP)
            for language, same in texts.items()
        }

    def phrases_of(self, doc: Any, language: str) -> list[ParsedPhrase]:
        """Return the phrases of a parsed text."""
        parser = self._parsers[language]
        return extract(doc, parser.lists, parser.grammar, keep_parts=self._config.keep_parts)

    def _parser_of(self, language: str, texts: int = 0) -> _Parser:
        parser = self._parsers.get(language)
        if parser is None or (texts and len(parser.nlp.vocab) > _MAX_VOCABULARY):
            package = self._config.package_of(language)
            if package is None:
                name = SPACY_LANGUAGES[language].name
                raise ConfigError(
                    f"spaCy publishes no pipeline for {name}: name one that is installed, as in "
                    f"phrases.spacy_models={{{language}: PACKAGE}}",
                    key=KEY,
                )
            lists = word_lists(self._config.drop_heads_add, self._config.drop_heads_keep, language=language)
            parser = _Parser(load_pipeline(package, language), lists, grammar_of(language))
            self._parsers[language] = parser
        return parser


def _is_installed(package: str | None) -> bool:
    """Return whether a spaCy pipeline is a package or a folder here. Nothing of it is run."""
    if package is None:
        return False
    if Path(package).is_dir():
        return True
    return package.isidentifier() and find_spec(package) is not None
