"""What a fine-tuning leaves in its folder.

model/       the tuned model, as open_clip's push_to_hf_hub writes one: `--model OUT` takes it
log.jsonl    a line for every so many steps
latest.pt    all that it takes to go on
previous.pt  the one before, should `latest.pt` be damaged
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from safetensors.torch import save
from torch import Tensor

from stages.contract.errors import ConfigError, OutputError, ResumeError, one_line
from stages.shared.model.recognise import OPEN_CLIP_CONFIG, TUNED_MODEL, Described

LATEST: Final = "latest.pt"
PREVIOUS: Final = "previous.pt"
LOG: Final = "log.jsonl"

_WEIGHTS: Final = "open_clip_model.safetensors"
_VOCABULARY: Final = "bpe_vocab.txt.gz"


class TuningFolder:
    """The folder of a fine-tuning.

    Args:
        path: made if it is not there.

    Raises:
        OutputError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {path}: {error.strerror}") from error

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The latest checkpoint; None if there is none.

        Raises:
            ResumeError: it is damaged.
        """
        path, before = self.path / LATEST, self.path / PREVIOUS
        if not path.exists():
            if before.exists():  # killed between two renames
                path = before
            else:
                return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            found["step"], found["decides"], found["log_bytes"]
        except Exception as error:  # torch raises many kinds for a damaged file
            advice = f"move {before} to its place to go on from there" if before.exists() else "give another --out"
            raise ResumeError(
                f"{path} is damaged ({one_line(error)[:200]}): {advice}, or begin anew with --fresh"
            ) from error
        return found

    def write_checkpoint(self, saved: Mapping[str, Any]) -> None:
        """Write a checkpoint beside the latest one and move it there; what was there becomes the previous one.

        Raises:
            OutputError: the disk is full, or the folder can no longer be written. The checkpoints before are kept.
        """
        path, temporary = self.path / LATEST, self.path / f"{LATEST}.tmp"
        try:
            with temporary.open("wb") as file:
                torch.save(dict(saved), file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, self.path / PREVIOUS)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # torch's writer makes a RuntimeError of a full disk
            temporary.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write {path}: {one_line(error)[:200]}. The checkpoint before it is kept: make room and give "
                "the same command to go on"
            ) from error

    def cut_log(self, size: int) -> None:
        """Forget log lines of steps that are taken again: all beyond the first `size` bytes."""
        path = self.path / LOG
        if path.exists() and path.stat().st_size > size:
            with path.open("r+b") as file:
                file.truncate(size)

    def log_bytes(self) -> int:
        """Bytes of the log so far."""
        path = self.path / LOG
        return path.stat().st_size if path.exists() else 0

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line. Raises OutputError."""
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write {self.path / LOG}: {error.strerror}. The checkpoints are kept") from error

    def lines(self) -> list[dict[str, Any]]:
        """The log."""
        path = self.path / LOG
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def clear(self) -> None:
        """Delete what a fine-tuning wrote, and nothing else."""
        for name in (LATEST, PREVIOUS, LOG, f"{LATEST}.tmp"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / TUNED_MODEL, ignore_errors=True)

    def write_model(self, described: Described, module: Any, state: Mapping[str, Tensor], card: str) -> Path:
        """Write the tuned model: configuration, weights, vocabulary and card.

        Args:
            described: of the model that training began with.
            module: open_clip's model.
            state: the weights, by open_clip's names.
            card: README.md.

        Returns:
            The folder.

        Raises:
            OutputError: it cannot be written.
        """
        folder, beside = self.path / TUNED_MODEL, self.path / f"{TUNED_MODEL}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            architecture = json.loads(json.dumps(described.architecture))
            options = architecture["text_cfg"].get("tokenizer_kwargs") or {}
            if described.folder is not None and "bpe_path" in options:
                shutil.copyfile(described.folder / options["bpe_path"], beside / _VOCABULARY)
                architecture["text_cfg"]["tokenizer_kwargs"] = {**options, "bpe_path": _VOCABULARY}
            if any(isinstance(part, open_clip.transformer.QuickGELU) for part in module.modules()):
                architecture["quick_gelu"] = True  # of OpenAI's files nothing else says it
            spec = described.input
            preprocess = {
                "size": spec.size_px,
                "mode": "RGB",
                "mean": spec.mean,
                "std": spec.std,
                "interpolation": spec.interpolation,
                "resize_mode": "squash",
            }
            settings = {"model_cfg": architecture, "preprocess_cfg": preprocess}
            (beside / OPEN_CLIP_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
            (beside / _WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
            (beside / "README.md").write_text(card, encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(beside, folder)
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise OutputError(f"cannot write {folder}: {error.strerror or one_line(error)}") from error
        except Exception as error:  # safetensors has an exception of its own for a full disk
            if type(error).__name__ != "SafetensorError":
                raise
            shutil.rmtree(beside, ignore_errors=True)
            raise OutputError(f"cannot write {folder}: {one_line(error)}") from error
        return folder


def refuse_unwritable(described: Described) -> None:
    """Raise ConfigError for a model that cannot be written in open_clip's layout."""
    if described.tokenizer is not None or described.siglip is not None:
        raise ConfigError(
            f"{described.name} is a SigLIP in transformers' layout, which cannot be written as one of open_clip's: "
            "take it from open_clip, by name and tag"
        )
