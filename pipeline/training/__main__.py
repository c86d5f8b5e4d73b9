"""The training of the two bundled models.

`python -m pipeline.training run OUT` and `python -m pipeline.training export OUT [FOLDER]` make `demo`.
`python -m pipeline.training photo OUT --photos FOLDER` and `python -m pipeline.training photo-export OUT [FOLDER]` make
`photo`. The same command resumes a training that was stopped.

On a machine that does other work too, set OMP_WAIT_POLICY=PASSIVE. Threads then sleep while they wait for one that the
system has paused, instead of using up the processor time that it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.training.drawn import TrainConfig, train
from pipeline.training.export import PHOTO_SIDE_PX, export_demo, export_photo
from pipeline.training.photo import PhotoConfig, train_photo
from stages.contract.errors import PhraseboxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or export, and return the exit code; print a PhraseboxError as one line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, model in (("run", "demo"), ("photo", "photo")):
        run = verbs.add_parser(verb, help=f"train {model}, or resume its training")
        run.add_argument("out", type=Path, help="folder for log and checkpoints")
        run.add_argument("--config", type=Path, help="JSON file with a training configuration")
        run.add_argument("--threads", type=int, default=2, help="torch threads")
        run.add_argument("--checkpoint-every-s", type=float, default=180.0, help="seconds between checkpoints")
        if verb == "photo":
            run.add_argument("--photos", type=Path, required=True, help="folder with flickr8k/ and coco/")
    for verb, model, side_px in (("export", "demo", None), ("photo-export", "photo", PHOTO_SIDE_PX)):
        give = verbs.add_parser(verb, help=f"write the averaged weights of {model} for use")
        give.add_argument("run", type=Path, help="folder of the training")
        give.add_argument("folder", type=Path, nargs="?", help="where to write; by default the repository's own folder")
        give.add_argument("--side-px", type=int, default=side_px, help="image side to export for")
        give.add_argument("--note", default="", help="a sentence on how the run went, for the model card")
    given = parser.parse_args(arguments)
    try:
        if given.verb in ("export", "photo-export"):
            export = export_demo if given.verb == "export" else export_photo
            export(given.run, given.folder, side_px=given.side_px, note=given.note)
            return 0
        torch.set_num_threads(given.threads)
        settings: Any = TrainConfig if given.verb == "run" else PhotoConfig
        config = settings() if given.config is None else settings.model_validate_json(given.config.read_text("utf-8"))
        if given.verb == "run":
            train(config, given.out, checkpoint_every_s=given.checkpoint_every_s)
        else:
            train_photo(config, given.photos, given.out, checkpoint_every_s=given.checkpoint_every_s)
    except PhraseboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
