"""The host's cost of a run beside the model: `python -m benchmarks.host_cost PHOTOGRAPHS CAPTIONS.jsonl`.

Milliseconds of one CPU thread for an image, by step: photographs at 640 px as JPEG, and captions as Flickr8k has them.
The model is `photo`, whose calibration has learned boxes. It computes for real; of its worker only what the host of a
GPU would do, too, is counted: tables to records and back, tokens, pinned pixels, presence and answers. The launches
are not in it (`python -m benchmarks.traced`).
"""

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from PIL import Image

from phrasebox.pipeline.commands.phrases import write_phrases
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.stage_calls import read_records, set_up
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.schema import records_to_rows
from phrasebox.stages.contract.tables import records_to_table, table_to_records
from phrasebox.stages.explain import base
from phrasebox.stages.model.device import pixels_on
from phrasebox.stages.model.text_cache import TextCache
from phrasebox.stages.model.text_encoder import TextEncoder
from phrasebox.stages.read import make_reader, plan_pieces
from phrasebox.stages.write import ShardWriter

SIDE_PX: Final = 640
AT_ONCE: Final = 256  # images of a call on a GPU
ROUNDS: Final = 3

WORKER: Final = ("unpack", "tokens", "pinned pixels", "presence and answers", "pack")
"""The steps of the model worker's thread, without launching."""


class Clock:
    """Milliseconds of this thread by step."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of the block to a step."""
        start = time.thread_time()
        yield
        self.spent[name] += 1000 * (time.thread_time() - start)

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time added to a step."""

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.step(name):
                return call(*arguments, **options)

        return counted


def photographs(source: Path, captions: Path, folder: Path, count: int, captions_each: int) -> None:
    """Write `count` photographs of `SIDE_PX`, captions_each with the first `captions_each` of its captions."""
    rows = [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()[:count]]
    for number, row in enumerate(rows):
        with Image.open(source / row["image"]) as image:
            share = SIDE_PX / max(image.size)
            size = (round(image.width * share), round(image.height * share))
            image.convert("RGB").resize(size).save(folder / f"{number}.jpg", quality=90)
        row |= {"image": f"{number}.jpg", "captions": row["captions"][:captions_each]}
    (folder / "captions.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8"
    )


def measured(folder: Path, **settings: Any) -> tuple[dict[str, float], int]:
    """Return the fewest milliseconds by step that all images of a folder took in a round, and their number."""
    source = {
        "kind": "jsonl",
        "path": str(folder / "captions.jsonl"),
        "image_root": str(folder),
        **settings,
    }
    values = {
        "input": source,
        "model": {"name": "photo"},
        "images": {"resize": "torch"},
    }
    config = RunConfig.model_validate(values)
    steps = build_steps(config)
    reader = make_reader(config.input)
    clock = Clock()
    encode = TextEncoder.__call__

    def encoded(self: TextEncoder, texts: Any) -> Any:
        tokenizer = self.tokenizer
        self.tokenizer = clock.timed("tokens", self.tokenizer)
        try:
            return encode(self, texts)
        finally:
            self.tokenizer = tokenizer

    with set_up(steps.stages), ExitStack() as timed:
        for place, name, call in (
            (TextEncoder, "__call__", encoded),
            (base, "pixels_on", clock.timed("pinned pixels", pixels_on)),
            (base.PendingMatches, "wait", clock.timed("presence and answers", base.PendingMatches.wait)),
            (base.PendingMaps, "wait", clock.timed("presence and answers", base.PendingMaps.wait)),
        ):
            timed.enter_context(mock.patch.object(place, name, call))
        rounds: list[dict[str, float]] = []
        for turn in range(1 + ROUNDS):  # the first one warms up
            clock.spent.clear()
            texts = steps.model_stage._explainer.texts
            steps.model_stage._explainer.texts = TextCache(texts.model, texts.templates)  # all are new
            with clock.step("read"):
                records = [
                    one for piece in plan_pieces(reader) for one in read_records(reader, piece, Counter())
                ]
                table = records_to_table(records)
            for number, stages in enumerate((steps.before, (steps.model_stage,), (steps.regions_stage,))):
                worker = ("captions: ", "", "regions: ")[number]
                with clock.step(f"{worker}unpack"):
                    given = records = table_to_records(table)
                for stage in stages:
                    with clock.step(stage.name):
                        records = stage.process(records)
                if number < 2:
                    with clock.step(f"{worker}pack"):
                        table = records_to_table(records, (given, table))
            with clock.step("rows and Parquet"):
                (data := folder / f"data-{turn}").mkdir()
                writer = ShardWriter(data, 1000)
                writer.write(records_to_rows(records))
                writer.close()
            clock.spent.pop("explain")  # the device's work
            rounds.append(dict(clock.spent))
    return {step: min(each[step] for each in rounds[1:]) for step in rounds[0]}, len(records)


def main() -> None:
    """Print a JSON object for one and for five captions."""
    parser = argparse.ArgumentParser()
    parser.add_argument("photographs", type=Path)
    parser.add_argument("captions", type=Path)
    parser.add_argument("--images", type=int, default=AT_ONCE)
    parser.add_argument("--captions-each", type=int, nargs="*", default=[1, 5])
    given = parser.parse_args()
    torch.set_num_threads(1)
    for captions_each, from_file in product(given.captions_each, (False, True)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            photographs(given.photographs, given.captions, folder, given.images, captions_each)
            settings: dict[str, Any] = {}
            if from_file:
                source = {
                    "kind": "jsonl",
                    "path": str(folder / "captions.jsonl"),
                    "image_root": str(folder),
                }
                settings = {"phrases": str(folder / "phrases.txt")}
                config = RunConfig.model_validate({"input": source})
                write_phrases(config.input, config.phrases, folder / "phrases.txt")
            spent, count = measured(folder, **settings)
        seconds = {step: round(value / count, 3) for step, value in spent.items()}
        worker = sum(seconds[step] for step in WORKER)
        figures = {**seconds, "worker": worker, "all": sum(seconds.values())}
        print(
            json.dumps({"captions": captions_each, "known": from_file, "images": count, **figures}),
            flush=True,
        )


if __name__ == "__main__":
    main()
