"""A whole run against a loop that decodes the same images and calls `encode_image`, by CPU time.

What a run costs is the CPU time of a long run less that of a short one, by the images that it has more: start-up
cancels out. Caches are empty at the start, so that every text is embedded when it is first seen. A processor that is
busy with something else only shares its time; it adds nothing but what shared caches and cores slow down. Ray is as
fast once it runs (`ray_vs_inline`), but what its processes take to start differs by seconds from run to run.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.bench.timing import line, processor
from pipeline.config import RunConfig
from pipeline.engines.inline import run as run_inline
from pipeline.graph import build_graph
from pipeline.output.folder import DatasetFolder
from pipeline.scenes import make_scene
from pipeline.summary import Report
from stages.read import plan_shards

IMAGES: Final = 160

SHORT: Final = 32
"""Images of the short run: as many as travel together."""

BATCH: Final = 8
"""Images of one forward pass, as in a run on a CPU."""

PHOTOGRAPHS: Final = Path(__file__).parents[2].parent / "shared/photos"
"""Flickr8k's dev split with five captions an image, where it lies beside the checkout; drawn scenes elsewhere."""

NEXT_TO_NOTHING: Final = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 32, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""A CLIP with the 14 x 14 tokens of ViT-B-16 and hardly any matrix products: what is left is the work around them."""


def whole_run() -> Iterator[dict[str, Any]]:
    """`run_vs_encode_1` and `_5` for one and five captions an image, and `host_ms_per_image_1` and `_5`.

    ViT-B-16 and ViT-B-32 with random weights, on one thread, by the inline engine. `host_ms_per_image` is
    the whole run of a model with the tokens of ViT-B-16 and next to no matrix products; its steps' shares follow.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, captions = _samples(folder)
        for captions_each in (1, 5):
            _write(folder / f"{captions_each}.jsonl", pictures, captions, captions_each)
        where = f"{IMAGES} {'photographs' if PHOTOGRAPHS.is_dir() else 'drawn scenes'}, one thread, {processor()}"
        for model in ("ViT-B-16", "ViT-B-32"):
            network = open_clip.create_model(model).eval()
            settings = {"name": model, "weights": _saved(network, folder / f"{model}.safetensors")}
            before = _bare(network, pictures)
            costs = {captions_each: _cost(folder, captions_each, settings)[0] for captions_each in (1, 5)}
            bare = (before + _bare(network, pictures)) / 2
            for captions_each, cost in costs.items():
                yield line(
                    f"run_vs_encode_{captions_each}_{model.lower().replace('-', '_')}",
                    cost / bare,
                    "ratio",
                    f"decoding and encode_image of {model}, {1000 * bare:.0f} ms an image; {where}",
                )
        (folder / "model.json").write_text(json.dumps(NEXT_TO_NOTHING))
        weights = _saved(open_clip.CLIP(**NEXT_TO_NOTHING), folder / "small.safetensors")
        settings = {"config": str(folder / "model.json"), "weights": weights}
        for captions_each in (1, 5):
            cost, steps = _cost(folder, captions_each, settings)
            yield line(f"host_ms_per_image_{captions_each}", 1000 * cost, "ms", f"next to no model; {where}")
            steps["reading, writing, and between the steps"] = cost - sum(steps.values())
            for step, seconds in steps.items():
                yield line(f"host_ms_per_image_{captions_each}: {step}", 1000 * seconds, "ms", f"of the above; {where}")


def _samples(folder: Path) -> tuple[list[Path], list[list[str]]]:
    """Images, and five captions of each. The photographs are those of the tests: it needs a checkout."""
    from tests.photos.measure import Photographs

    (folder / "images").mkdir()
    pictures, captions = [], []
    if PHOTOGRAPHS.is_dir():
        photographs = Photographs(PHOTOGRAPHS, folder, IMAGES)
        lines = photographs.captions("flickr8k/dev").read_text(encoding="utf-8").splitlines()[:IMAGES]
        for row in map(json.loads, lines):
            pictures.append(photographs.images("flickr8k/dev") / row["image"])
            captions.append(row["captions"])
        return pictures, captions
    for number in range(IMAGES):
        scene = make_scene(0, number, side_px=500, extra_captions=4)
        pictures.append(folder / f"images/{number}.jpg")
        Image.fromarray(scene.image).resize((500, 375)).save(pictures[-1], quality=90)
        captions.append([caption.text for caption in scene.captions])
    return pictures, captions


def _saved(network: Any, path: Path) -> str:
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return str(path)


def _write(path: Path, pictures: list[Path], captions: list[list[str]], each: int) -> None:
    rows = [
        json.dumps({"image": str(picture), "captions": own[:each]})
        for picture, own in zip(pictures, captions, strict=True)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    path.with_suffix(".short.jsonl").write_text("\n".join(rows[:SHORT]) + "\n", encoding="utf-8")


def _bare(network: Any, pictures: list[Path]) -> float:
    """CPU seconds an image of what every program that looks at images with CLIP does."""
    mean, std = (
        torch.tensor(each)[:, None, None] for each in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    start = time.process_time()
    with torch.inference_mode():
        for first in range(0, len(pictures), BATCH):
            pixels = [
                np.array(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
                for path in pictures[first : first + BATCH]
            ]
            network.encode_image((torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std)
    return (time.process_time() - start) / len(pictures)


def _cost(folder: Path, captions_each: int, model: dict[str, str]) -> tuple[float, dict[str, float]]:
    """CPU seconds an image of a run, and the busy seconds an image of its steps."""
    found = []
    short_one = f"{captions_each}.short.jsonl"
    for part in (short_one, short_one, f"{captions_each}.jsonl"):  # the first time imports what the others find
        found.append(_run(folder / part, folder / f"out-{len(list(folder.iterdir()))}", model))
    _, (short, short_steps), (long, long_steps) = found
    more = IMAGES - SHORT
    return (long - short) / more, {step: (long_steps[step] - short_steps[step]) / more for step in long_steps}


def _run(captions: Path, out: Path, model: dict[str, str]) -> tuple[float, dict[str, float]]:
    """CPU seconds of a run, and the busy seconds of each step."""
    config = RunConfig.model_validate(
        {
            "input": {"kind": "jsonl", "path": str(captions)},
            "model": {**model, "threads": 1},
            "engine": {"kind": "inline"},
            "output": {"path": str(out)},
        }
    )
    output, report, graph = DatasetFolder(config.output.path), Report(), build_graph(config)
    shards = plan_shards(graph.reader)
    start = time.process_time()
    with output.locked():
        output.begin(output.look(config, graph.fingerprint))
        run_inline(graph, shards, output, config, report, lambda _: None)
    return time.process_time() - start, {step: entry.busy_s for step, entry in report.stages.items()}
