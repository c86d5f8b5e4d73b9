"""Questions and answers about regions for trainers of vision-language models; a style for each.

`SPLIT.jsonl`, or `SPLIT.json` for LLaVA, has a record for each question about an image: where a
phrase is, also an absent one; which boxes the phrases of a caption have; what a box shows. An
object is asked for once, by one of its phrases. Several boxes stand from left to right.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from phrasebox.pipeline.dataset.rows import Annotation, Row
from phrasebox.pipeline.export.base import ChosenSample, Exporter, ExportJob, Per
from phrasebox.pipeline.export.chat.config import ChatConfig
from phrasebox.pipeline.export.chat.interview import Interview
from phrasebox.pipeline.export.chat.objects import usable_objects
from phrasebox.pipeline.export.files import RecordLines, RecordList

QUESTIONS: Final = "questions with answers"
WITHOUT_QUESTIONS: Final = "images that nothing can be asked about"


class Chat(Exporter):
    """Questions and answers."""

    summary = (
        "SPLIT.jsonl with questions and answers about regions, for ms-swift, Qwen-VL, LLaVA, PaliGemma, Florence-2, "
        "Kosmos-2 and Molmo"
    )
    masks = "not written; molmo's points lie in them"
    next_step = (
        '{config.entry.reader} reads "{out}/{split}{config.suffix}" with the images in "{images}"; '
        '"{out}/README.md" says what stands in it'
    )
    needs_words = True
    keeps_empty = False  # without a region there is nothing to ask
    config_type = ChatConfig
    image_folder = "images/{split}"

    def __init__(self, config: ChatConfig, job: ExportJob) -> None:
        super().__init__(config, job)
        self._tasks = config.asked_tasks  # checks them before anything is written

    def open_split(self, split: str) -> RecordLines:
        """Return the records of a split."""
        record_file = RecordList if self.config.entry.is_list else RecordLines
        return record_file(self.job.folder, f"{split}{self.config.suffix}")

    @classmethod
    def usual_per(cls, config: ChatConfig) -> Per:
        """Return the default of `--per`: an object is one question."""
        return "group"

    @classmethod
    def holds(cls, config: ChatConfig, row: Row) -> bool:
        """Return whether absent phrases are asked for and the row has some."""
        asks = (
            config.negatives > 0 and "locate" in config.asked_tasks and config.wordings.absent is not None
        )
        return bool(asks and row["absent"])

    def add(self, sample: ChosenSample) -> None:
        """Write one sample: a record for each question."""
        conversations = [*Interview(sample, self.config, self.notes).conversations()]
        self.notes[QUESTIONS] += len(conversations)
        if not conversations:
            self.notes[WITHOUT_QUESTIONS] += 1
            return
        image = self.image_name(sample)
        for number, conversation in enumerate(conversations):
            record = self.config.entry.layout(conversation, image, f"{sample.row['id']}-{number}")
            self.files[sample.split].add(record)

    def written_regions(self, sample: ChosenSample) -> list[Annotation]:
        """Return the regions of the objects that are asked for."""
        return [
            region for entry in usable_objects(sample, self.config, Counter()) for region in entry.regions
        ]

    def close(self) -> None:
        """Complete the files, and write the card."""
        super().close()
        self.job.folder.file("README.md").write_text(self._card(), encoding="utf-8")

    def _card(self) -> str:
        """Return what a reader must know of the coordinates."""
        config: Any = self.config
        files = ", ".join(f"`{split}{config.suffix}`" for split in self.job.splits)
        lines = [
            f"# Questions and answers about regions, for {config.style}",
            "",
            f"{files}: made by phrasebox from CLIP alone; nobody looked at the regions.",
            "",
            f"- {config.entry.reader} reads them.",
            f"- Boxes: {config.entry.coordinates}. Several boxes stand from left to right.",
            f"- Questions: {', '.join(self._tasks)}; seed {config.seed}.",
        ]
        if config.entry.needs_pixels:
            lines.append(
                f"- The boxes are right only where the trainer resizes with min_pixels={config.min_pixels} and "
                f"max_pixels={config.max_pixels}."
            )
        if config.style == "llava":
            lines.append(
                f"- The boxes are right only where the trainer pads images so: padding={config.padding}."
            )
        if config.wordings.absent is not None:
            lines.append(f"- What is not in the image is answered by `{config.wordings.absent}`.")
        return "\n".join([*lines, "- The licence of the images and captions is that of their source.", ""])
