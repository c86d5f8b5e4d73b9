"""Are the phrases of a caption those that people marked? F1 of exact spans against Flickr30k Entities.

    python -m benchmarks.photos.phrases FOLDER    # with Sentences/*.txt, as in dev.entities.tar.gz

Determiners at the beginning of a span do not count. A phrase that people marked as nothing visible is a mistake.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.languages import grammar_of
from phrasebox.stages.phrases.languages.grammar import ENGLISH_CODE
from phrasebox.stages.phrases.parsers import CAPTIONS_PER_STEP
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.truth.flickr30k import MARKED_PHRASE, NOT_VISUAL, SENTENCES, read_captions

Span = tuple[int, int]
"""Characters of a caption, half open."""


def marked_captions(folder: Path) -> Iterator[tuple[str, set[Span]]]:
    """The captions of a folder, and the spans of the visible things in them."""
    for path in sorted((folder / SENTENCES).glob("*.txt")):
        for caption, line in read_captions(path):
            spans = set()
            for match in MARKED_PHRASE.finditer(line):
                before = " ".join(
                    MARKED_PHRASE.sub(lambda mark: mark["words"], line[: match.start()]).split()
                )
                start = len(before) + caption[len(before) : len(before) + 1].isspace()
                if match["chain"] != NOT_VISUAL:
                    words = " ".join(match["words"].split())
                    spans.add(without_determiner(caption, (start, start + len(words))))
            if caption:
                yield caption, spans


def without_determiner(caption: str, span: Span, language: str = ENGLISH_CODE) -> Span:
    """A span without the determiners that it begins with, in a language."""
    grammar = grammar_of(language)
    start, end = span
    while True:
        words = caption[start:end].lower()
        space = words.find(" ")
        if space >= 0 and words[:space] in grammar.determiners:
            start += space + 1
        elif elision := next(filter(words.startswith, grammar.elisions), ""):
            start += len(elision)
        else:
            return start, end


def figures_in_words(folder: Path, *, keep_parts: bool) -> str:
    """The figures of the default parser, for people."""
    stage = PhrasesStage(PhrasesConfig(keep_parts=keep_parts))
    stage.setup()
    captions = list(marked_captions(folder))
    right = marked = predicted = 0
    for first in range(0, len(captions), CAPTIONS_PER_STEP):
        batch = captions[first : first + CAPTIONS_PER_STEP]
        samples = [Sample(sample_id=caption, source="", captions=(caption,)) for caption, _ in batch]
        for (caption, spans), record in zip(
            batch, stage.process(list(map(Record.start, samples))), strict=True
        ):
            phrases = {without_determiner(caption, (phrase.start, phrase.end)) for phrase in record.phrases}
            right += len(phrases & spans)
            marked += len(spans)
            predicted += len(phrases)
    return (
        f"{len(captions):,} captions, keep_parts {str(keep_parts).lower()}: F1 {2 * right / (marked + predicted):.4f} "
        f"(precision {right / predicted:.4f}, recall {right / marked:.4f})"
    )


def main() -> None:
    """Print the figures of both settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for keep_parts in (False, True):
        print(figures_in_words(arguments.folder, keep_parts=keep_parts))


if __name__ == "__main__":
    main()
