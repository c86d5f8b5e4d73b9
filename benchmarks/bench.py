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
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import RunConfig
from pipeline.load import Contents, RegionStream
from pipeline.run import run
from pipeline.scenes import make_scene, write_scenes
from pipeline.summary import Report
from stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.phrases.noun_phrases import load_pipeline
from stages.phrases.stage import PhrasesConfig, PhrasesStage
from stages.regions.config import RegionsConfig
from stages.regions.stage import RegionsStage
from stages.shared.model.device import DTYPES, device_name, is_fast, pick_device
from stages.shared.model.load import from_open_clip

Figures = Iterator[dict[str, Any]]

ROUNDS: Final = 3
BATCH: Final = 8  # images of one forward pass, as in a run on a CPU
IMAGES, SHORT = (
    48,
    16,
)  # of the long and the short run of `whole_run`; the short one has one call of the model worker

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


def ratio_of(ours: Callable[[], Any], baseline: Callable[[], Any]) -> float:
    """Return the median over rounds of our time divided by the baseline's; the two alternate."""
    ours()
    times = [seconds_of(call) for call in (baseline, *(ours, baseline) * ROUNDS)]
    return statistics.median(2 * times[n] / (times[n - 1] + times[n + 1]) for n in range(1, len(times), 2))


def speed_of(items: Callable[[], Iterable[Any]]) -> float:
    """Return items per CPU second, by the fastest of some passes after one that warms up."""
    count = sum(1 for _ in items())
    passes = range(max(3, round(1 / seconds_of(lambda: [*items()], time.process_time))))
    return count / min(seconds_of(lambda: [*items()], time.process_time) for _ in passes)


def heat_maps() -> Figures:
    """Time of heat maps for a batch over the time of `encode_image` for the same batch, on the GPU if there is one.

    Text embeddings are cached, as in a run after its first batches. The row of bf16 is measured where that is fast.
    """
    device = pick_device("auto")
    model, tokenizer = (
        open_clip.create_model("ViT-B-16", device=device).eval(),
        open_clip.get_tokenizer("ViT-B-16"),
    )
    precisions = {"fp32", "bf16"} if is_fast(torch.bfloat16, device) else {"fp32"}
    clips = {
        each: from_open_clip(model, tokenizer, name="ViT-B-16", precision=DTYPES[each])
        for each in precisions
    }
    rgb = np.random.default_rng(0).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255).to(device)

    def encode() -> None:
        with torch.inference_mode():
            model.encode_image(pixels).cpu()  # which waits for a GPU

    default = GradEclipConfig()
    against = f"encode_image, ViT-B-16, 224 px, batch {BATCH}, fp32, {device_name(device)}"
    for name, count, config, precision in (
        ("heatmaps_8_vs_encode_image", 8, default, "fp32"),
        ("heatmaps_32_vs_encode_image", 32, default, "fp32"),
        ("heatmaps_8_blocks4_vs_encode_image", 8, GradEclipConfig(blocks=4), "fp32"),
        (
            "heatmaps_8_authors_vs_encode_image",
            8,
            GradEclipConfig(variant="authors", image_size="model"),
            "fp32",
        ),
        ("heatmaps_8_bf16_vs_encode_image", 8, default, "bf16"),
    ):
        if precision in clips:
            explainer = GradEclip(config, clips[precision])
            texts = [[f"{WORDS[i % len(WORDS)]} {i // len(WORDS)}" for i in range(count)]] * BATCH
            yield line(
                name, ratio_of(lambda e=explainer, t=texts: e.explain(rgb, t), encode), "ratio", against
            )  # type: ignore[misc]


def regions(images: int = 12, count: int = 8) -> Figures:
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
        for i in range(images)
    ]
    plain, guided = RegionsConfig(refine="none"), RegionsConfig(upsample="guided", rule="fixed")
    for name, config in (("", plain), ("guided_", guided), ("refined_", RegionsConfig(refine="grabcut"))):
        stage = RegionsStage(config)
        stage.setup()
        seconds = [seconds_of(lambda s=stage: s.process(batch), time.process_time) for _ in range(ROUNDS)]  # type: ignore[misc]
        speed = images * count / min(seconds[1:])
        yield line(f"{name}regions_per_second", speed, "maps/s", "one core, 640x480, RLE included")


def phrases(captions: int = 320) -> Figures:
    """Time of the phrases stage over the time of spaCy's `pipe` alone with the same components."""
    texts = [
        f"A {a} is standing next to the {b} in front of a {c} while two people look at the {d}."
        for a, b, c, d in islice(product(WORDS, repeat=4), captions)
    ]
    stage = PhrasesStage(PhrasesConfig())
    stage.setup()
    nlp = load_pipeline(stage.config.spacy_model)
    records = [
        Record(sample=Sample(sample_id=str(i), source="bench", captions=(t,))) for i, t in enumerate(texts)
    ]
    starts = range(0, captions, 32)
    ratio = ratio_of(
        lambda: [stage.process(records[start : start + 32]) for start in starts],
        lambda: [list(nlp.pipe(texts[start : start + 32])) for start in starts],
    )
    yield line("phrases_vs_nlp_pipe", ratio, "ratio", "nlp.pipe, same components, same batches")


def engines(scenes: int = 256) -> Figures:
    """Images per second of both engines with the embedded model; and of the loaders, which read the dataset.

    The clock starts when the first model batch is done and stops with the last row. Only images that the model had not
    seen at the start count, so that what an engine prepared before does not help it.
    """
    speeds, starts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", scenes, 0)
        source = {"path": str(root / "scenes/captions.jsonl"), "image_root": str(root / "scenes/images")}
        for kind in ("inline", "ray"):
            report = _run(root / kind, source, {"name": "demo"}, engine=kind)
            start, batch = report.first_batch or (0.0, 0)
            speeds[kind], starts[kind] = (scenes - batch) / (report.wall_time_s - start), start
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
        yield line(f"loader_annotations{masks}", speed_of(lambda s=stream: s), "images/s", cpu)  # type: ignore[misc]
    decoding = RegionStream(dataset, Contents(), keep_empty=True)
    bare = speed_of(
        lambda: (torch.from_numpy(np.array(Image.open(path).convert("RGB"))) for path in images)
    )
    against = f"Pillow's decoding of the same files to RGB tensors, {cpu}"
    yield line("loader_decoding_vs_bare_loop", speed_of(lambda: decoding) / bare, "of its speed", against)


def whole_run() -> Figures:
    """CPU time of a whole run, one thread, over that of a loop that decodes the images and calls `encode_image`.

    The cost of a run is the CPU time of a long run less that of a short one, by the images that it has more: start-up
    cancels out. Caches are empty at the start, so that every text is embedded when it is first seen.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures, captions = _samples(folder)
        for captions, count in product((1, 5), (SHORT, IMAGES)):
            rows = zip(map(str, pictures[:count]), captions, strict=False)
            text = "\n".join(
                json.dumps({"image": picture, "captions": own[:captions]}) for picture, own in rows
            )
            (folder / f"{captions}-{count}.jsonl").write_text(text + "\n", encoding="utf-8")
        where = f"{IMAGES} synthetic scenes, one thread, {processor()}"
        _cost(folder, 1, {"name": "demo"})  # imports modules that the others find
        for model in ("ViT-B-16", "ViT-B-32"):
            network, weights = open_clip.create_model(model).eval(), folder / f"{model}.safetensors"
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, weights)
            settings = {"name": model, "weights": str(weights)}
            before = _bare(network, pictures)
            costs = {captions: _cost(folder, captions, settings) for captions in (1, 5)}
            bare = (before + _bare(network, pictures)) / 2
            against = f"decoding and encode_image of {model}, {1000 * bare:.0f} ms an image; {where}"
            for captions, cost in costs.items():
                yield line(
                    f"run_vs_encode_{captions}_{model.lower().replace('-', '_')}",
                    cost / bare,
                    "ratio",
                    against,
                )


def _samples(folder: Path) -> tuple[list[Path], list[list[str]]]:
    """Return image files, and five captions of each."""
    scenes = [make_scene(0, number, side_px=500) for number in range(IMAGES)]
    pictures = [folder / f"{number}.jpg" for number in range(IMAGES)]
    for scene, picture in zip(scenes, pictures, strict=True):
        Image.fromarray(scene.image).resize((500, 375)).save(picture, quality=90)
    texts = [scene.caption.text for scene in scenes]
    return pictures, [[texts[(number + step) % IMAGES] for step in range(5)] for number in range(IMAGES)]


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


def _cost(folder: Path, captions_each: int, model: dict[str, Any]) -> float:
    """Return CPU seconds an image of a run."""
    seconds = []
    for count in (SHORT, IMAGES):
        source = {"path": str(folder / f"{captions_each}-{count}.jsonl")}
        with tempfile.TemporaryDirectory(dir=folder) as out:
            start = time.process_time()
            _run(Path(out) / "out", source, {**model, "threads": 1})
            seconds.append(time.process_time() - start)
    return (seconds[1] - seconds[0]) / (IMAGES - SHORT)


def _run(out: Path, source: dict[str, str], model: dict[str, Any], engine: str = "inline") -> Report:
    report, output = Report(), {"path": str(out), "rows_per_file": 250}
    values = {
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


def main() -> None:
    """Parse the command line; measure all figures, or those that are named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(FIGURES), help="repeatable; by default all")
    given = parser.parse_args()
    for name in given.only or FIGURES:
        for figure in FIGURES[name]():
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
