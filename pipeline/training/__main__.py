"""The training of the bundled model `demo`.

`python -m pipeline.training run OUT` and `python -m pipeline.training export OUT [FOLDER]` make it. The same command
resumes a training that was stopped.

On a machine that does other work too, set OMP_WAIT_POLICY=PASSIVE. Threads then sleep while they wait for one that the
system has paused, instead of using up the processor time that it needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.training.drawn import TrainConfig, train
from pipeline.training.export import export_demo
from stages.contract.errors import PhraseboxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Train or export, and return the exit code; print a PhraseboxError as one line."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="train, or resume the training")
    run.add_argument("out", type=Path, help="folder for log and checkpoints")
    run.add_argument("--config", type=Path, help="JSON file with a training configuration")
    run.add_argument("--threads", type=int, default=2, help="torch threads")
    run.add_argument("--checkpoint-every-s", type=float, default=180.0, help="seconds between checkpoints")
    give = verbs.add_parser("export", help="write the averaged weights for use")
    give.add_argument("run", type=Path, help="folder of the training")
    give.add_argument("folder", type=Path, nargs="?", help="where to write; by default the repository's own folder")
    give.add_argument("--side-px", type=int, help="image side to export for")
    give.add_argument("--note", default="", help="a sentence on how the run went, for the model card")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "export":
            export_demo(given.run, given.folder, side_px=given.side_px, note=given.note)
        else:
            torch.set_num_threads(given.threads)
            text = "{}" if given.config is None else given.config.read_text("utf-8")
            train(TrainConfig.model_validate_json(text), given.out, checkpoint_every_s=given.checkpoint_every_s)
    except PhraseboxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
