"""`make bench`: one JSON line for each figure, measured against a baseline in the same process; minutes on 2 cores.

Models have the real architectures and random weights: the time does not depend on what a model knows. Timings of two
sides alternate, so that a machine that slows down slows both. Captions and images are synthetic scenes. numpy has one
thread, as the command line gives it (`OPENBLAS_NUM_THREADS=1`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.captions import make_captions
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.scenes import make_scene, write_scenes
from phrasebox.pipeline.load import Contents, RegionStream
from phrasebox.pipeline.output.report import Report
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.grad_eclip import GradEclip
from phrasebox.stages.model.device import DTYPES, device_name, is_fast, pick_device
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.phrases.pipelines import load_pipeline
from phrasebox.stages.phrases.stage import PhrasesStage
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.regions.stage import RegionsStage

Figures = Iterator[dict[str, Any]]

BATCH: Final = 8  # images of one forward pass, as in a run on a CPU


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    rounds        of two sides that alternate
    phrases       of an image, of which heat maps are timed: some, and many
    region_images images of 640 x 480 whose regions are timed
    captions      given to the phrases stage
    scenes        synthetic scenes of a run by each engine
    long, short   images of the two runs of `whole_run`; the short one has one call of the model worker
    models        of `whole_run`; heat maps are those of the first
    """

    rounds: int = 3
    phrases: tuple[int, int] = (8, 32)
    region_images: int = 12
    captions: int = 320
    scenes: int = 256
    long: int = 48
    short: int = 16
    models: tuple[str, ...] = ("ViT-B-16", "ViT-B-32")


SMALLEST: Final = Sizes(
    rounds=1,
    phrases=(1, 2),
    region_images=1,
    captions=32,
    scenes=40,
    long=2,
    short=1,
    models=("ViT-S-32-alt",),
)
"""Enough to run every line of this program; the figures say nothing."""

WORDS: Final = (
    "dog",
    "cat",
    "red car",
    "old house",
    "tall man",
    "woman",
    "green tree",
    "table",
    "street",
    "bicycle",
)


def line(name: str, value: float, unit: str, against: str) -> dict[str, Any]:
    """Return a figure as it is printed."""
    return {"name": name, "value": round(value, 3), "unit": unit, "against": against}


def seconds_of(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the time of one call."""
    start = clock()
    call()
    return clock() - start


def ratio_of(ours: Callable[[], Any], baseline: Callable[[], Any], rounds: int) -> float:
    """Return the median over rounds of our time divided by the baseline's; the two alternate."""
    ours()
    times = [seconds_of(call) for call in (baseline, *(ours, baseline) * rounds)]
    return statistics.median(2 * times[n] / (times[n - 1] + times[n + 1]) for n in range(1, len(times), 2))


def speed_of(items: Callable[[], Iterable[Any]]) -> float:
    """Return items per CPU second, by the fastest of some passes after one that warms up."""
    count = sum(1 for _ in items())
    passes = range(max(3, round(1 / seconds_of(lambda: [*items()], time.process_time))))
    return count / min(seconds_of(lambda: [*items()], time.process_time) for _ in passes)


def heat_maps(sizes: Sizes) -> Figures:
    """Time of heat maps for a batch over the time of `encode_image` for the same batch, on the GPU if there is one.

    Text embeddings are cached, as in a run after its first batches. The row of bf16 is measured where that is fast.
    """
    device = pick_device("auto")
    name = sizes.models[0]
    model, tokenizer = open_clip.create_model(name, device=device).eval(), open_clip.get_tokenizer(name)
    precisions = {"fp32", "bf16"} if is_fast(torch.bfloat16, device) else {"fp32"}
    clips = {
        each: from_open_clip(model, tokenizer, name=name, precision=DTYPES[each]) for each in precisions
    }
    rgb = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255).to(device)

    def encode() -> None:
        with torch.inference_mode():
            model.encode_image(pixels).cpu()  # which waits for a GPU

    default = GradEclipConfig()
    against = f"encode_image, {name}, 224 px, batch {BATCH}, fp32, {device_name(device)}"
    some, many = sizes.phrases
    for what, count, config, precision in (
        ("", some, default, "fp32"),
        ("", many, default, "fp32"),
        ("_blocks4", some, GradEclipConfig(blocks=4), "fp32"),
        ("_authors", some, GradEclipConfig(variant="authors", image_size="model"), "fp32"),
        ("_bf16", some, default, "bf16"),
    ):
        if precision in clips:
            explainer = GradEclip(config, clips[precision])
            texts = [[f"{WORDS[i % len(WORDS)]} {i // len(WORDS)}" for i in range(count)]] * BATCH
            ratio = ratio_of(partial(explainer.explain, rgb, texts), encode, sizes.rounds)
            yield line(f"heatmaps_{count}{what}_vs_encode_image", ratio, "ratio", against)


def regions(sizes: Sizes, count: int = 8) -> Figures:
    """Regions per CPU second, from 14 x 14 maps with two soft spots and noise, for 640 x 480 pixels."""
    rng, grid = np.random.default_rng(0), np.mgrid[:14, :14]

    def heat_map(text: str) -> HeatMap:
        a, b = (
            np.exp(-((grid - rng.uniform(0, 14, (2, 1, 1))) ** 2).sum(0) / rng.uniform(2, 10)) for _ in "ab"
        )
        heat = np.maximum(a + 0.6 * b + rng.normal(-0.05, 0.06, (14, 14)), 0)
        return HeatMap(text=text, values=heat.astype(np.float32), similarity=0.3)

    named = tuple(Phrase(text=f"p{i}", caption_index=0, start=0, end=2, head=f"p{i}") for i in range(count))
    batch = [
        Record(
            sample=Sample(sample_id=str(i), source="bench"),
            width_px=640,
            height_px=480,
            phrases=named,
            pixels=Pixels(rgb=make_scene(0, i, side_px=224).image),
            heat_maps=tuple(heat_map(each.text) for each in named),
        )
        for i in range(sizes.region_images)
    ]
    plain, guided = RegionsConfig(refine="none"), RegionsConfig(upsample="guided", rule="fixed")
    for name, config in (("", plain), ("guided_", guided), ("refined_", RegionsConfig(refine="grabcut"))):
        stage = RegionsStage(config)
        stage.setup()
        process = partial(stage.process, batch)
        _, *seconds = [seconds_of(process, time.process_time) for _ in range(1 + sizes.rounds)]
        speed = len(batch) * count / min(seconds)
        yield line(f"{name}regions_per_second", speed, "maps/s", "one core, 640x480, RLE included")


def phrases(sizes: Sizes) -> Figures:
    """Time of the phrases stage over the time of spaCy's `pipe` alone with the same components."""
    texts = [
        f"A {a} is standing next to the {b} in front of a {c} while two people look at the {d}."
        for a, b, c, d in islice(product(WORDS, repeat=4), sizes.captions)
    ]
    stage = PhrasesStage(PhrasesConfig())
    stage.setup()
    nlp = load_pipeline(stage.config.packages[0], stage.config.language)
    records = [
        Record(sample=Sample(sample_id=str(i), source="bench", captions=(t,))) for i, t in enumerate(texts)
    ]
    starts = range(0, len(texts), 32)
    ratio = ratio_of(
        lambda: [stage.process(records[start : start + 32]) for start in starts],
        lambda: [list(nlp.pipe(texts[start : start + 32])) for start in starts],
        sizes.rounds,
    )
    yield line("phrases_vs_nlp_pipe", ratio, "ratio", "nlp.pipe, same components, same batches")


def engines(sizes: Sizes) -> Figures:
    """Images per second of both engines with the embedded model; and of the loaders, which read the dataset.

    The clock starts when the first model batch is done and stops with the last row. Only images that the model had not
    seen at the start count, so that what an engine prepared before does not help it.
    """
    speeds, starts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", sizes.scenes, 0)
        source = {"path": str(root / "scenes/captions.jsonl"), "image_root": str(root / "scenes/images")}
        for kind in ("inline", "ray"):
            report = _run(root / kind, source, {"name": "demo"}, engine=kind)
            start, batch = report.first_batch or (0.0, 0)
            speeds[kind], starts[kind] = (sizes.scenes - batch) / (report.wall_time_s - start), start
        machine = f"embedded model, {len(os.sched_getaffinity(0))} cores"
        yield line("inline_images_per_second", speeds["inline"], "images/s", machine)
        yield line(
            "ray_vs_inline", speeds["ray"] / speeds["inline"], "ratio", "inline images/s, after start-up"
        )
        yield line(
            "ray_start_seconds", starts["ray"], "s", f"first model batch; inline {starts['inline']:.1f} s"
        )
        yield from _loaders(root / "inline", sorted((root / "scenes/images").iterdir()))


def _loaders(dataset: Path, images: list[Path]) -> Figures:
    torch.set_num_threads(1)  # as in a worker of DataLoader
    cpu = f"one core, {processor()}"
    grid, full = Contents(images=False, grid_hw=(14, 14)), Contents(images=False, masks="full")
    for masks, contents in (
        ("", Contents(images=False)),
        ("_with_grid_masks", grid),
        ("_with_full_masks", full),
    ):
        stream = RegionStream(dataset, contents)
        yield line(f"loader_annotations{masks}", speed_of(partial(iter, stream)), "images/s", cpu)
    decoding = RegionStream(dataset, Contents(), keep_empty=True)
    bare = speed_of(
        lambda: (torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in images)
    )
    against = f"Pillow's decoding of the same files to RGB tensors, {cpu}"
    yield line("loader_decoding_vs_bare_loop", speed_of(lambda: decoding) / bare, "of its speed", against)


def whole_run(sizes: Sizes) -> Figures:
    """CPU time of a whole run, one thread, over that of a loop that decodes the images and calls `encode_image`.

    The cost of a run is the CPU time of a long run less that of a short one, by the images that it has more: start-up
    cancels out. Caches are empty at the start, and no caption comes twice, so that all captions are embedded.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, captions = _samples(folder, sizes.long)
        for each_has, count in product((1, 5), (sizes.short, sizes.long)):
            rows = [
                {"image": str(picture), "captions": texts[:each_has]}
                for picture, texts in zip(pictures[:count], captions[:count], strict=True)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{each_has}-{count}.jsonl").write_text(lines, encoding="utf-8")
        where = f"{sizes.long} synthetic scenes, captions that never repeat, one thread, {processor()}"
        _cost(folder, 1, {"name": "demo"}, sizes)  # imports modules that the others find
        for model in sizes.models:
            network, weights = open_clip.create_model(model).eval(), folder / f"{model}.safetensors"
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
            settings = {"name": model, "weights": str(weights)}
            before = _bare(network, pictures)
            costs = {each_has: _cost(folder, each_has, settings, sizes) for each_has in (1, 5)}
            bare = (before + _bare(network, pictures)) / 2
            against = f"decoding and encode_image of {model}, {1000 * bare:.0f} ms an image; {where}"
            for each_has, cost in costs.items():
                name_of_run = f"run_vs_encode_{each_has}_{model.lower().replace('-', '_')}"
                yield line(name_of_run, cost / bare, "ratio", against)


def _samples(folder: Path, images: int) -> tuple[list[Path], list[list[str]]]:
    """Return image files, and five captions of each."""
    scenes = [make_scene(0, number, side_px=500) for number in range(images)]
    pictures = [folder / f"{number}.jpg" for number in range(images)]
    for scene, picture in zip(scenes, pictures, strict=True):
        Image.fromarray(scene.image).resize((500, 375)).save(picture, quality=90)
    texts = iter(make_captions(5 * images))
    return pictures, [list(islice(texts, 5)) for _ in range(images)]


def _bare(network: Any, pictures: list[Path]) -> float:
    """Return CPU seconds an image of what every program that looks at images with CLIP does."""
    constants = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    mean, std = (torch.tensor(each)[:, None, None] for each in constants)
    start = time.process_time()
    with torch.inference_mode():
        for first in range(0, len(pictures), BATCH):
            images = [Image.open(path).convert("RGB") for path in pictures[first : first + BATCH]]
            pixels = np.stack(
                [np.array(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
            )
            network.encode_image((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    return (time.process_time() - start) / len(pictures)


def _cost(folder: Path, captions_each: int, model: dict[str, Any], sizes: Sizes) -> float:
    """Return CPU seconds an image of a run."""
    seconds = []
    for count in (sizes.short, sizes.long):
        source = {"path": str(folder / f"{captions_each}-{count}.jsonl")}
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.process_time()
            _run(Path(out) / "out", source, {**model, "threads": 1})
            seconds.append(time.process_time() - start)
    return (seconds[1] - seconds[0]) / (sizes.long - sizes.short)


def _run(out: Path, source: dict[str, str], model: dict[str, Any], engine: str = "inline") -> Report:
    report, output = Report(), {"path": str(out), "rows_per_file": 250}
    values: dict[str, Any] = {
        "input": {"kind": "jsonl", **source},
        "model": model,
        "engine": {"kind": engine},
        "output": output,
    }
    values["regions"] = {"calibration": "none"}  # no comparison with the images of a fit
    run(RunConfig.model_validate(values), report=report)
    return report


def processor() -> str:
    """Return the processor's name, if the system says it."""
    path = Path("/proc/cpuinfo")
    match = (
        re.search(r"^model name\s*: (.*)$", path.read_text("utf-8"), re.MULTILINE)
        if path.exists()
        else None
    )
    return f"{match[1] if match else 'unknown'} CPU"


FIGURES: Final = {figure.__name__: figure for figure in (heat_maps, regions, phrases, engines, whole_run)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line; measure all figures, or those that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(FIGURES), help="repeatable; by default all")
    parser.add_argument(
        "--smallest", action="store_true", help="run every line once; the figures say nothing"
    )
    given = parser.parse_args(arguments)
    for name in given.only or FIGURES:
        for figure in FIGURES[name](SMALLEST if given.smallest else Sizes()):
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
