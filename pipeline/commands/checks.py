"""Checks that verbs make before they import the libraries of the model, which takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.steps import check_files
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.read import Piece, make_reader, plan_pieces
from phrasebox.stages.truth import read_truth


def check_sections(settings: Iterable[str], sections: Sequence[str], advice: str = "") -> None:
    """Raise ConfigError for a setting KEY=VALUE of a section that a verb does not use."""
    for setting in settings:
        if setting.partition(".")[0] not in sections:
            raise ConfigError(
                f"only keys of {', '.join(sections)} are used here{advice}", key=f"--set {setting}"
            )


def check_places(config: RunConfig, truth: Path | None = None) -> list[Piece]:
    """Check that input, images, model and ground truth exist; return the parts of the input.

    Raise ConfigError, InputError or WeightsError if one of them does not.
    """
    check_files(config)
    if truth is not None and not truth.exists():
        read_truth(truth)  # its message names the expected files
    return plan_pieces(make_reader(config.input))
