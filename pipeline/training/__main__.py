"""The training of the models that live in this repository.

`python -m pipeline.training run OUT` and `python -m pipeline.training export CHECKPOINT [FOLDER]` make the embedded
model.

`python -m pipeline.training photo OUT --photos FOLDER` and `python -m pipeline.training photo-export OUT [FOLDER]`
make the photograph model.

On a machine that does other work too, set OMP_WAIT_POLICY=PASSIVE. Threads then sleep while they wait for one that the
system has paused, instead of using up the processor time that it needs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from pipeline.training.config import SMOKE_PHASES, TrainConfig
from pipeline.training.export import export
from pipeline.training.loop import train
from pipeline.training.photo.config import PhotoConfig
from pipeline.training.photo.export import SIDE_PX, export_photo
from pipeline.training.photo.loop import train_photo
from stages.contract.errors import PhraseboxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train or export.

    Args:
        arguments: words of the command line; None for the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.training", description="Train the embedded model, or the one for photographs."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train from scratch, or go on from a checkpoint or from exported weights")
    run.add_argument("out", type=Path, help="folder for log and checkpoints")
    run.add_argument("--config", type=Path, help="JSON file with a training configuration")
    run.add_argument("--smoke", action="store_true", help="a run of seconds that shows that everything works")
    start = run.add_mutually_exclusive_group()
    start.add_argument("--resume", type=Path, help="checkpoint to go on from")
    start.add_argument(
        "--from-weights",
        type=Path,
        metavar="FOLDER",
        help="exported weights to begin a new run with; give it a configuration with another seed",
    )
    run.add_argument("--threads", type=int, default=2, help="torch threads")
    run.add_argument("--workers", type=int, default=1, help="processes that draw scenes")
    run.add_argument("--checkpoint-every-s", type=float, default=180.0, help="seconds between checkpoints")
    give = verbs.add_parser("export", help="write a checkpoint's averaged weights for use")
    give.add_argument("checkpoint", type=Path)
    give.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1] / "weights" / "demo")
    give.add_argument("--side-px", type=int, help="image side to export for; without it, the checkpoint's own")
    give.add_argument("--note", default="", help="a sentence on how the run went, for the model card")
    _add_photo(verbs)
    given = parser.parse_args(arguments)

    if given.verb in _PHOTO_VERBS:
        return _photo(given)
    if given.verb == "export":
        export(given.checkpoint, given.folder, side_px=given.side_px, note=given.note)
        return 0
    torch.set_num_threads(given.threads)
    if given.smoke:
        config = TrainConfig(phases=SMOKE_PHASES, batch=16, warmup_steps=4, evaluation_scenes=20)
    elif given.config is not None:
        config = TrainConfig.model_validate(json.loads(given.config.read_text("utf-8")))
    else:
        config = TrainConfig()
    train(
        config,
        given.out,
        workers=0 if given.smoke else given.workers,
        checkpoint_every_s=given.checkpoint_every_s,
        resume=given.resume,
        from_weights=given.from_weights,
    )
    return 0


_PHOTO_VERBS: Final = ("photo", "photo-export")


def _add_photo(verbs: Any) -> None:
    run = verbs.add_parser("photo", help="train the photograph model, or go on with its training")
    run.add_argument("out", type=Path, help="folder for features, log and checkpoint")
    run.add_argument("--photos", type=Path, required=True, help="folder with flickr8k/ and coco/")
    run.add_argument("--config", type=Path, help="JSON file with a training configuration")
    run.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    run.add_argument("--threads", type=int, default=2, help="torch threads")
    run.add_argument("--checkpoint-every-s", type=float, default=180.0, help="seconds between checkpoints")
    give = verbs.add_parser("photo-export", help="write the averaged weights of the photograph model for use")
    give.add_argument("run", type=Path, help="folder of the run")
    give.add_argument("folder", type=Path, nargs="?", help="where to write; without it, the repository's own folder")
    give.add_argument("--side-px", type=int, default=SIDE_PX, help="side of the images that it is to look at")
    give.add_argument("--note", default="", help="a sentence on how the run went, for the model card")


def _photo(given: argparse.Namespace) -> int:
    """Train or export the photograph model; what is missing or wrong is said in one line."""
    try:
        if given.verb == "photo-export":
            export_photo(given.run, given.folder, side_px=given.side_px, note=given.note)
            return 0
        torch.set_num_threads(given.threads)
        config = PhotoConfig()
        if given.config is not None:
            config = PhotoConfig.model_validate(json.loads(given.config.read_text("utf-8")))
        train_photo(config, given.photos, given.out, checkpoint_every_s=given.checkpoint_every_s, resume=given.resume)
    except PhraseboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
