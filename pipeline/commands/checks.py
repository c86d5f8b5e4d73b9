"""Checks that verbs make before they import the libraries of the model, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import RunConfig
from pipeline.graph import check_files
from stages.read import Shard, make_reader, plan_shards
from stages.truth import read_truth


def check_places(config: RunConfig, truth: Path | None = None) -> list[Shard]:
    """Look whether input, images, model and ground truth are there; return the parts of the input.

    Raise ConfigError, InputError or WeightsError if they are not.
    """
    check_files(config)
    if truth is not None and not truth.exists():
        read_truth(truth)  # which says what is expected
    return plan_shards(make_reader(config.input))
