"""A pool of concepts, parsed from all captions of an input, by which sources may call their boxes.

RegionCLIP (Zhong and others, CVPR 2022, arXiv 2112.09106) parses its concepts from a corpus of
captions, and keeps those that occur often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.output.report import ShowStep
from phrasebox.pipeline.run.stage_calls import run_stages, samples_in, set_up, take_batch
from phrasebox.pipeline.run.steps import make_phrases_stage
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.contract.records import Record
from phrasebox.stages.read import Piece, Reader

ROWS: Final = 256  # samples whose captions are parsed together


STEP: Final = "parsing all captions into a pool of concepts, samples"


def parse_pool(
    config: RunConfig,
    reader: Reader,
    pieces: Sequence[Piece],
    most: int,
    show_step: ShowStep = lambda *_: None,
) -> dict[str, str]:
    """Return the phrases of all captions of an input with their head nouns, those of most images first, `most` at most.

    The parser of the run is used, in this process. `show_step` hears how many of how many samples
    are parsed. Samples whose captions cannot be used count for nothing; the run makes rows with
    an error of them. Raise InputError if no caption has a phrase.
    """
    total = samples_in(pieces)
    parsed = 0
    show_step(STEP)
    stage = make_phrases_stage(config)
    records = map(Record.start, reader.samples(pieces))
    images: Counter[str] = Counter()
    heads: dict[str, str] = {}
    with set_up([stage]):
        while batch := take_batch(records, ROWS):
            for record in run_stages([stage], batch):
                images.update({phrase.text for phrase in record.phrases})
                for phrase in record.phrases:
                    heads.setdefault(phrase.text, phrase.head)
            parsed += len(batch)
            show_step(STEP, parsed, total)
    if not heads:
        raise InputError(
            f"the captions of {counted(parsed, 'sample')} have no phrase, so the pool of concepts is empty",
            key="source.concepts",
        )
    frequent = sorted(images.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return {text: heads[text] for text, _ in frequent}
