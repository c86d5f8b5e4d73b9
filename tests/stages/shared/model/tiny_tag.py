"""A model with a tag of pretrained weights, as open_clip's own are, but tiny; and a program that knows it."""

from __future__ import annotations

import sys
from typing import Any

import open_clip
from open_clip import factory, pretrained

from tests.factories import SPEC, tiny_architecture

REPOSITORY = "house/tiny"

TAG: dict[str, Any] = {"hf_hub": f"{REPOSITORY}/", "mean": SPEC.mean, "std": SPEC.std, "quick_gelu": True}


def register() -> None:
    """Add `tiny/one` to what open_clip lists."""
    factory._MODEL_CONFIGS["tiny"] = tiny_architecture()
    pretrained._PRETRAINED["tiny"] = {"one": TAG}
    assert open_clip.list_pretrained_tags_by_model("tiny") == ["one"]


if __name__ == "__main__":
    register()
    from pipeline.cli import main

    sys.argv[0] = "phrasebox"
    main()
