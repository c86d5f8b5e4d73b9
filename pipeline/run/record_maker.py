"""Finished records of samples in this process, for programs that call phrasebox: no folder, no engine.

The stages, their order and the batches are those of a run in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from threading import Lock

from phrasebox.pipeline.run.questions import (
    QUESTION_SHARE,
    as_captions,
    as_lines,
    parse_questions,
    without_captions,
)
from phrasebox.pipeline.run.stage_calls import rows_per_call, run_stages, take_batch
from phrasebox.pipeline.run.steps import HeatMapSteps
from phrasebox.stages.contract.records import Record, Sample
from phrasebox.stages.scores.foreign_captions import USUAL_SHARE


class RecordMaker:
    """Makes finished records of samples, with stages that it sets up. Threads that call it take turns.

    Args:
        steps: The stages. A share of absent phrases that they leave open becomes that of captions or of questions.
        caption_share: The share of captions' phrases that is expected to be absent where it is open; None: the
            usual one.

    Raises:
        WeightsError: The model cannot be loaded.
        ResourceError: The device is not there.
    """

    def __init__(self, steps: HeatMapSteps, caption_share: float | None = None) -> None:
        shares = (USUAL_SHARE if caption_share is None else caption_share, QUESTION_SHARE)
        # They are not set up: that would leave OpenCV one thread in the whole process.
        self._caption_regions, self.question_regions = (
            steps.expecting(share if steps.has_open_share else None).regions_stage for share in shares
        )
        self._phrases_stage = steps.before[0]
        self._model_stages = (steps.prepare_stage, steps.model_stage)
        self._takes_texts_as_typed = steps.explainer.takes_texts_as_typed
        self._lock = Lock()
        self._phrases_stage.setup()
        steps.model_stage.setup()
        self._rows = rows_per_call(steps.model_stage)
        self.device = steps.model_stage.take_forwards().device

    def annotate(self, samples: Iterable[Sample]) -> Iterator[list[Record]]:
        """Yield the finished records of captioned samples in batches, in order. Raise PhraseboxError as the stages."""
        return self._in_batches(samples, self._annotate)

    def annotate_questions(self, samples: Iterable[Sample]) -> Iterator[list[Record]]:
        """Yield the same of samples whose captions are questions: phrases, each judged by itself.

        Such a record has no caption scores, and its phrases are in the order of the questions.
        """
        return self._in_batches(samples, self._annotate_questions)

    def answer(self, sample: Sample) -> Record:
        """Return the record of a sample whose captions are questions, as if these were the lines of one caption."""
        [[record]] = self._in_batches([sample], self._answer)
        return record

    def _in_batches(
        self, samples: Iterable[Sample], compute: Callable[[list[Record]], list[Record]]
    ) -> Iterator[list[Record]]:
        from phrasebox.stages.model.device import float32_grads  # noqa: PLC0415  it loads torch

        records = map(Record.start, samples)
        while batch := take_batch(records, self._rows):
            with self._lock, float32_grads():
                answers = compute(batch)
            del batch  # its images, before the next ones are read
            yield answers

    def _annotate(self, batch: list[Record]) -> list[Record]:
        return run_stages((self._phrases_stage, *self._model_stages, self._caption_regions), batch)

    def _annotate_questions(self, batch: list[Record]) -> list[Record]:
        return [
            as_captions(record, before.sample.captions)
            for record, before in zip(self._answer(batch), batch, strict=True)
        ]

    def _answer(self, batch: list[Record]) -> list[Record]:
        parsed = parse_questions(self._phrases_stage, batch, as_typed=self._takes_texts_as_typed)
        explained = run_stages(self._model_stages, list(map(without_captions, parsed)))
        lines = [
            as_lines(record, before.sample.captions)
            for record, before in zip(explained, batch, strict=True)
        ]
        return run_stages([self.question_regions], lines)
