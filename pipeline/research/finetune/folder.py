"""The folder of a fine-tuning: its log, checkpoints to resume from, and the tuned model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from phrasebox.stages.contract.errors import OutputError, ResumeError, one_line
from phrasebox.stages.contract.values import Json
from phrasebox.stages.files.storage import replacing
from phrasebox.stages.model.checkpoints.files import OPEN_CLIP_CONFIG, TUNED_MODEL

LATEST: Final = "latest.pt"  # the checkpoint to resume from
LOG: Final = "log.jsonl"  # JSON objects, one on each line

# Files of the tuned model, beside `OPEN_CLIP_CONFIG`.
WEIGHTS: Final = "open_clip_model.safetensors"
VOCABULARY: Final = "bpe_vocab.txt.gz"
CARD: Final = "README.md"
WRITTEN_BY: Final = "Fine-tuned by phrasebox"  # words of every card


class TrainingFolder:
    """The folder of a training.

    Raise OutputError if it does not exist and cannot be created, and ResumeError if `model/`, which
    the tuned model replaces, holds files that no training wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / TUNED_MODEL
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror}") from error
        names = {path.name for path in self.model.iterdir()} if self.model.is_dir() else set()
        if CARD in names and WRITTEN_BY in (self.model / CARD).read_text("utf-8", errors="replace"):
            names -= {OPEN_CLIP_CONFIG, WEIGHTS, VOCABULARY, CARD}
        if names:
            raise ResumeError(
                f"{self.model} is where the tuned model goes, and holds files that no training wrote "
                f"({', '.join(sorted(names)[:4])}): give another --out, or move them"
            )

    def read_checkpoint(self) -> Json | None:
        """Return the latest checkpoint; None if there is none.

        Raise ResumeError if it is damaged.
        """
        path = self.path / LATEST
        if not path.exists():
            return None
        try:
            checkpoint: Json = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = one_line(error)[:200]
            raise ResumeError(
                f"{path} is damaged ({reason}): give another --out, or begin anew with --fresh"
            ) from error
        return checkpoint

    def write_checkpoint(self, checkpoint: Json) -> None:
        """Replace the checkpoint.

        Raise OutputError, and keep the one before, if it cannot be written.
        """
        path = self.path / LATEST
        try:
            # Errors of `open` name the reason; those of torch's own writer do not.
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(dict(checkpoint), file)
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            raise OutputError(
                f"cannot write {path}: {one_line(error)[:200]}. The checkpoint before it is kept: make room and give "
                "the same command to resume"
            ) from error

    def write_log(self, lines: Sequence[Json]) -> None:
        """Write the log. Raise OutputError."""
        path = self.path / LOG
        try:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}. The checkpoints are kept") from error

    def clear(self) -> None:
        """Delete log and checkpoints; nothing else."""
        for path in (self.path / LATEST, self.path / LOG, *self.path.glob(f".{LATEST}.*.tmp")):
            path.unlink(missing_ok=True)
