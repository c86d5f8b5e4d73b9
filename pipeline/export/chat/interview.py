"""The questions about one sample and their answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from phrasebox.pipeline.dataset.rows import Annotation, absent_phrases
from phrasebox.pipeline.export.base import OBJECT_PHRASES, ChosenSample
from phrasebox.pipeline.export.chat.config import ChatConfig, Task, fill
from phrasebox.pipeline.export.chat.coordinates import Frame
from phrasebox.pipeline.export.chat.objects import (
    RESERVED,
    NamedObject,
    edges_of,
    in_order,
    is_too_long,
    usable_objects,
)
from phrasebox.pipeline.export.chat.styles import (
    BOX_MARK,
    MARKUP,
    PHRASE_MARK,
    PHRASE_SEPARATOR,
    Conversation,
)
from phrasebox.stages.contract.records import stable_id

RESERVED_CAPTIONS: Final = "captions with < or >, which models read as markup: not grounded"
NESTED: Final = (
    "phrases within another phrase of a grounded caption: without a box there, since marks do not nest"
)
INCOMPLETE: Final = (
    "questions whose answer lacks boxes: the phrase has more regions, which this export leaves out"
)
ABSENT: Final = "questions about absent phrases"
UNANSWERED: Final = (
    "absent phrases that the style has no answer for: left out; --set templates can give one"
)

_SPACES: Final = re.compile(r"\s+")
_IDS: Final = 2**53

Mention = tuple[int, int, list[Annotation]]
"""The characters [start, end) of a phrase in a caption, and the regions of its objects."""


class Interview:
    """All questions about a sample, which do not depend on other samples."""

    def __init__(self, sample: ChosenSample, config: ChatConfig, notes: Counter[str]) -> None:
        row = sample.row
        self._sample = sample
        self._config = config
        self._style = config.entry
        self._notes = notes
        self._objects = usable_objects(sample, config, notes)
        trained = config.model_dump(include={"min_pixels", "max_pixels", "padding"})
        self._frame = Frame(width=row["width"], height=row["height"], **trained)

    def conversations(self) -> Iterator[Conversation]:
        """Yield the conversations in a fixed order."""
        if "locate" in self._config.asked_tasks:
            yield from self._locate()
            if not is_too_long(self._sample, self._config):
                yield from self._locate_absent()
        if "ground" in self._config.asked_tasks:
            for index, caption in enumerate(self._sample.row["captions"]):
                yield from self._ground(index, caption)
        if "describe" in self._config.asked_tasks:
            yield from self._describe()

    def _locate(self) -> Iterator[Conversation]:
        """Ask for each object by one of its phrases; the answer has all objects with that phrase."""
        style = self._style
        unchosen_phrases = {region["phrase"] for region in self._sample.unchosen_regions}
        for phrase in dict.fromkeys(map(self._phrase_of, self._objects)):
            self._notes[INCOMPLETE] += phrase in unchosen_phrases
            named = (entry for entry in self._objects if phrase in entry.phrases)
            regions = in_order(region for entry in named for region in entry.regions)
            texts = self._write_boxes(regions)
            if style.join_phrases is None:
                answer = style.join_boxes(texts)
            else:
                answer = style.join_phrases([style.write_phrase(self._label(phrase), texts)])
            yield self._ask_for(phrase, answer, regions)

    def _locate_absent(self) -> Iterator[Conversation]:
        """Ask for absent phrases, unless a region of the row has the same phrase."""
        answer = self._config.wordings.absent
        mentions = (
            entry for region in self._sample.regions for entry in region.get(OBJECT_PHRASES, (region,))
        )
        present = {entry["phrase"] for entry in (*mentions, *self._sample.unchosen_regions)}
        for phrase in absent_phrases(self._sample.row):
            if phrase in present or self._draw(f"absent {phrase}") >= self._config.negatives * _IDS:
                continue
            if not self._style.can_write(phrase):
                self._notes[RESERVED] += 1
            elif answer is None:
                self._notes[UNANSWERED] += 1
            else:
                self._notes[ABSENT] += 1
                yield self._ask_for(phrase, answer, [])

    def _ask_for(self, phrase: str, answer: str, regions: Sequence[Annotation]) -> Conversation:
        """Return the question where a phrase is, with an answer."""
        shown = PHRASE_MARK if self._style.has_marks else phrase
        question = fill(self._choose("locate", phrase), phrase=shown)
        phrases = [phrase] * question.count(PHRASE_MARK)
        phrases += [self._style.write_label(phrase)] * answer.count(PHRASE_MARK)
        return Conversation(
            question=question, answer=answer, phrases=phrases, boxes=[*map(edges_of, regions)]
        )

    def _ground(self, index: int, caption: str) -> Iterator[Conversation]:
        """Ask for the boxes of a caption's phrases, in their order."""
        if not set(caption).isdisjoint(MARKUP):
            self._notes[RESERVED_CAPTIONS] += 1
            return
        mentions = self._mentions_in(index, caption)
        if not mentions:
            return
        style = self._style
        words = [tidy(caption[start:end]) for start, end, _ in mentions]
        boxes = [self._write_boxes(regions) for _, _, regions in mentions]
        entries = list(map(style.write_phrase, map(self._label, words), boxes))
        answer = (
            self._insert(caption, mentions, entries)
            if style.join_phrases is None
            else style.join_phrases(entries)
        )
        question = self._choose("ground", str(index))
        question = fill(question, caption=tidy(caption), phrases=PHRASE_SEPARATOR.join(words))
        phrases = [
            style.write_label(text)
            for text, entry in zip(words, entries, strict=True)
            for _ in range(entry.count(PHRASE_MARK))
        ]
        edges = [edges_of(region) for _, _, regions in mentions for region in regions]
        yield Conversation(question=question, answer=answer, phrases=phrases, boxes=edges)

    def _mentions_in(self, index: int, caption: str) -> list[Mention]:
        """Return the phrases of a caption in their order; without those within another, where marks stand in it."""
        regions_by_span: dict[tuple[int, int], list[Annotation]] = {}
        for entry in self._objects:
            for caption_index, start, end in entry.mentions:
                if caption_index == index:
                    regions_by_span.setdefault((start, end), []).extend(entry.regions)
        mentions: list[Mention] = []
        end_of_last = 0
        for start, end in sorted(regions_by_span, key=lambda span: (span[0], -span[1])):
            if not self._style.can_write(caption[start:end]):
                self._notes[RESERVED] += 1
            elif self._style.join_phrases is None and start < end_of_last:
                self._notes[NESTED] += 1
            else:
                mentions.append((start, end, in_order(regions_by_span[start, end])))
                end_of_last = end
        return mentions

    def _insert(self, caption: str, mentions: Sequence[Mention], entries: Sequence[str]) -> str:
        """Return a caption with entries in the place of its phrases."""
        text = ""
        end_of_last = 0
        for (start, end, _), entry in zip(mentions, entries, strict=True):
            before = caption[end_of_last:start]
            text += (before.rstrip() if self._style.has_space_within else before) + entry
            end_of_last = end
        return tidy(text + caption[end_of_last:])

    def _describe(self) -> Iterator[Conversation]:
        """Ask what a box shows; boxes of plurals are left out, since none shows all of it."""
        for entry in self._objects:
            regions = in_order(entry.regions)
            if len(regions) > 1:
                continue
            answer = self._phrase_of(entry)
            box = self._style.join_boxes(self._write_boxes(regions))
            question = fill(self._choose("describe", answer), box=box)
            edges = [edges_of(regions[0])] * question.count(BOX_MARK)
            yield Conversation(question=question, answer=answer, boxes=edges)

    def _write_boxes(self, regions: Sequence[Annotation]) -> list[str]:
        return [self._style.write_box(region, self._frame) for region in regions]

    def _label(self, phrase: str) -> str:
        """Return a phrase as it stands in answers."""
        return PHRASE_MARK if self._style.has_marks else self._style.write_label(phrase)

    def _phrase_of(self, entry: NamedObject) -> str:
        """Return the phrase that an object is called by in this export."""
        return entry.phrases[self._draw(f"phrase {entry.phrases}") % len(entry.phrases)]

    def _choose(self, task: Task, about: str) -> str:
        """Return a wording of a question about something."""
        questions = self._config.wordings.of(task)
        return questions[self._draw(f"{task} {about}") % len(questions)]

    def _draw(self, about: str) -> int:
        """Return a number in 1 .. 2^53 - 1 that depends on the seed, the sample and what it is for."""
        return stable_id(f"{self._config.seed}\n{self._sample.row['sample_id']}\n{about}")


def tidy(text: str) -> str:
    """Return a text in one line, with single spaces.

    >>> tidy(" a  red\\ncar")
    'a red car'
    """
    return _SPACES.sub(" ", text).strip()
