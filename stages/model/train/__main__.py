"""`python -m stages.model.train run OUT`, `python -m stages.model.train export CHECKPOINT [FOLDER]`.

On a machine that does other work too, set OMP_WAIT_POLICY=PASSIVE. Threads then sleep while they wait for one that the
system has paused, instead of using up the processor time that it needs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from stages.model.train.config import SMOKE_PHASES, TrainConfig
from stages.model.train.export import export
from stages.model.train.loop import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train or export.

    Args:
        arguments: words of the command line; None for the process's own.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m stages.model.train", description="Train the embedded model.")
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
    given = parser.parse_args(arguments)

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


if __name__ == "__main__":
    raise SystemExit(main())
