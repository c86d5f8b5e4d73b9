"""`make bench`: one JSON line for each figure, measured against a baseline in the same process.

The models have the real architectures and random weights: the time does not depend on what a model knows. Timings
alternate between the two sides, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from stages.dataset.load import Contents, RegionDataset, RegionStream, collate_regions
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.model.deferred import open_clip
from stages.model.device import PRECISIONS, device_name, fast_precision, pick_device
from stages.model.load import from_open_clip
from stages.model.scenes import make_scene
from stages.phrases.stage import PhrasesConfig, PhrasesStage
from stages.read import plan_shards
from stages.regions.config import RegionsConfig
from stages.regions.stage import RegionsStage

IMAGES = 8
ROUNDS = 7
LOADER_BATCH = 64

WORDS = ["dog", "cat", "red car", "old house", "tall man", "woman", "green tree", "table", "street", "blue bicycle"]
LAST_BLOCK = GradEclipConfig(blocks=1)


def main() -> None:
    """Parse the command line; measure all figures, or those that are named."""
    figures = {figure.__name__: figure for figure in (heat_maps, regions, phrases, engines, loaders)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(figures), help="repeatable; by default all")
    for name in parser.parse_args().only or figures:
        for line in figures[name]():
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def heat_maps() -> list[dict[str, Any]]:
    """Time of heat maps for a batch over the time of `encode_image` for the same batch.

    ViT-B-16, 224 px, batch 8, fp32, on the GPU if there is one. Text embeddings are cached, as in a run after its first
    batches. On a processor or GPU that computes bf16 fast, the time with a bf16 trunk is measured too.
    """
    device = pick_device("auto")
    model = open_clip.create_model("ViT-B-16", device=device).eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    precisions = {"fp32", fast_precision(device)}
    clips = {
        p: from_open_clip(model, tokenizer, name="ViT-B-16", precision=PRECISIONS[p], pack=True) for p in precisions
    }
    rgb = np.random.default_rng(0).integers(0, 256, (IMAGES, 224, 224, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255).to(device)

    def encode() -> None:
        with torch.inference_mode():
            model.encode_image(pixels).cpu()  # which waits for a GPU

    cases = {
        "heatmaps_8_vs_encode_image": (8, LAST_BLOCK, "fp32"),
        "heatmaps_32_vs_encode_image": (32, LAST_BLOCK, "fp32"),
        "heatmaps_8_blocks4_vs_encode_image": (8, GradEclipConfig(blocks=4), "fp32"),
        "heatmaps_8_authors_vs_encode_image": (8, GradEclipConfig(variant="authors", image_size="model"), "fp32"),
        "heatmaps_8_bf16_vs_encode_image": (8, LAST_BLOCK, "bf16"),
    }
    lines = []
    against = f"encode_image, ViT-B-16, 224 px, batch {IMAGES}, fp32, {device_name(device)}"
    for name, (count, config, precision) in cases.items():
        if precision not in clips:
            continue
        explainer = GradEclip(config, clips[precision])
        texts = [[f"{WORDS[i % len(WORDS)]} {i // len(WORDS)}" for i in range(count)]] * IMAGES
        ratio = _ratio(lambda e=explainer, t=texts: e.explain(rgb, t), encode)  # type: ignore[misc]
        lines.append(_line(name, ratio, "ratio", against))
    return lines


def regions(images: int = 50, count: int = 8) -> list[dict[str, Any]]:
    """Regions per CPU second on one core, from 14 x 14 maps with two soft spots and noise, for 640 x 480 pixels.

    The boundary follows the contour of the map, or the colours of drawn scenes at 224 x 224: guided, or refined.
    """
    rng, grid = np.random.default_rng(0), np.mgrid[:14, :14]

    def values() -> NDArray[np.float32]:
        a, b = (np.exp(-((grid - rng.uniform(0, 14, (2, 1, 1))) ** 2).sum(0) / rng.uniform(2, 10)) for _ in "ab")
        heat: NDArray[np.float32] = np.maximum(a + 0.6 * b + rng.normal(-0.05, 0.06, (14, 14)), 0).astype(np.float32)
        return heat

    texts = [f"p{i}" for i in range(count)]
    named = tuple(Phrase(text=text, caption_index=0, start=0, end=2, head=text) for text in texts)
    batch = [
        Record(
            sample=Sample(sample_id=str(i), source="bench"),
            width_px=640,
            height_px=480,
            phrases=named,
            pixels=Pixels(rgb=make_scene(0, i, side_px=224).image),
            heat_maps=tuple(HeatMap(text=text, values=values(), similarity=0.3) for text in texts),
        )
        for i in range(images)
    ]
    return [
        _line(name, images * count / _stage_seconds(config, batch), "maps/s", against)
        for name, config, against in (
            ("regions_per_second", RegionsConfig(refine="none"), "one core, 640x480, RLE included"),
            ("guided_regions_per_second", RegionsConfig(upsample="guided", rule="fixed"), "the same"),
            ("refined_regions_per_second", RegionsConfig(refine="grabcut"), "the same"),
        )
    ]


def _stage_seconds(config: RegionsConfig, batch: list[Record]) -> float:
    stage = RegionsStage(config)
    stage.setup()
    seconds = []
    for _ in range(4):
        start = time.process_time()
        stage.process(batch)
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def phrases(captions: int = 2000) -> list[dict[str, Any]]:
    """Time of the phrases stage over the time of spaCy's `pipe` alone with the same components."""
    from stages.phrases.noun_phrases import load_pipeline

    texts = [
        f"A {a} is standing next to the {b} in front of a {c} while two people look at the {d}."
        for a in WORDS
        for b in WORDS
        for c in WORDS
        for d in WORDS
    ][:captions]
    config = PhrasesConfig()
    nlp = load_pipeline(config.spacy_model)
    stage = PhrasesStage(config)
    stage.setup()
    records = [Record(sample=Sample(sample_id=str(i), source="bench", captions=(t,))) for i, t in enumerate(texts)]

    def ours() -> None:
        for start in range(0, len(records), 32):
            stage.process(records[start : start + 32])

    def bare() -> None:
        for start in range(0, len(texts), 32):
            for _ in nlp.pipe(texts[start : start + 32]):
                pass

    ratio = _ratio(ours, bare, rounds=3)
    return [_line("phrases_vs_nlp_pipe", ratio, "ratio", "nlp.pipe, same components, same batches")]


def engines(scenes: int = 1000) -> list[dict[str, Any]]:
    """Images per second of the ray engine over those of the inline engine, on the same cores, after start-up.

    Both run the embedded model over drawn scenes. The clock starts when the first model batch is done and stops with
    the last row. Only images that the model had not seen at the start count, so that what an engine prepared before
    does not help it.
    """
    from pipeline.config import RunConfig
    from pipeline.engines import engine
    from pipeline.graph import build_graph
    from pipeline.output.folder import DatasetFolder
    from pipeline.summary import Report
    from stages.model.scenes import write_scenes

    speeds, starts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", scenes, 0)
        for kind in ("inline", "ray"):
            captions, images = root / "scenes/captions.jsonl", root / "scenes/images"
            source = {"kind": "jsonl", "path": str(captions), "image_root": str(images)}
            output_config = {"path": str(root / kind), "rows_per_file": 250}
            config = RunConfig.model_validate({"input": source, "engine": {"kind": kind}, "output": output_config})
            output, report, graph = DatasetFolder(config.output.path), Report(), build_graph(config)
            marks: list[tuple[float, int]] = []

            def show(report: Report, marks: list[tuple[float, int]] = marks) -> None:
                explained = report.stages["explain"].records if "explain" in report.stages else 0
                if not marks and explained:
                    marks.append((report.wall_time_s, explained))
                if len(marks) == 1 and report.done == scenes:
                    marks.append((report.wall_time_s, scenes))

            with output.locked():
                output.begin(config, graph.fingerprint, fresh=False)
                engine(kind)(graph, plan_shards(graph.reader), output, config, report, show)
            (start, seen), (end, _) = marks
            speeds[kind], starts[kind] = (scenes - seen) / (end - start), start
    machine = f"embedded model, {len(os.sched_getaffinity(0))} cores"
    return [
        _line("inline_images_per_second", speeds["inline"], "images/s", machine),
        _line("ray_images_per_second", speeds["ray"], "images/s", machine),
        _line(
            "ray_vs_inline", speeds["ray"] / speeds["inline"], "ratio", "inline images/s, same cores, after start-up"
        ),
        _line("ray_start_seconds", starts["ray"], "s", f"inline {starts['inline']:.1f} s, until the first model batch"),
    ]


def loaders(rows: int = 6000, images: int = 300) -> list[dict[str, Any]]:
    """Images per second of the loaders for training: annotations alone, and decoding against a bare loop.

    By CPU time of one process. Only in a checkout: the dataset is a synthetic one of the tests, with three regions an
    image on average.
    """
    from tests.synthetic import write_synthetic

    torch.set_num_threads(1)  # as in a worker of DataLoader
    cpu = f"one core, {_cpu()}"
    with tempfile.TemporaryDirectory() as name:
        folder = write_synthetic(Path(name) / "rows", rows, rows_per_file=1000)
        cases = {
            "loader_annotations": Contents(images=False),
            "loader_annotations_with_grid_masks": Contents(images=False, grid_hw=(14, 14)),
            "loader_annotations_with_full_masks": Contents(images=False, masks="full"),
        }
        lines = [
            _line(name, _speed(RegionStream(folder, contents)), "images/s", cpu) for name, contents in cases.items()
        ]
        tokens = RegionStream(folder, Contents(images=False, tokenizer="dataset"))
        known = f"phrases known, as after the first steps, {cpu}"
        lines.append(_line("loader_annotations_with_tokens", _speed(tokens), "images/s", known))
        plain = RegionStream(folder, cases["loader_annotations"], count=True)
        speed = _speed(DataLoader(plain, LOADER_BATCH, collate_fn=collate_regions)) * LOADER_BATCH
        lines.append(_line("loader_annotations_collated", speed, "images/s", f"batches of {LOADER_BATCH}, {cpu}"))
        indexed = RegionDataset(folder, cases["loader_annotations"], cached_rows=2000)
        in_order = DataLoader(indexed, LOADER_BATCH, collate_fn=list)
        lines.append(_line("loader_by_number_in_order", _speed(in_order) * LOADER_BATCH, "images/s", cpu))
        lines += _decoding(write_synthetic(Path(name) / "images", images, embed_images=True, rows_per_file=100), cpu)
    return lines


def _decoding(folder: Path, cpu: str) -> list[dict[str, Any]]:
    """The images with their annotations in original size, over reading the same column and decoding with Pillow."""
    stream = RegionStream(folder, Contents(), keep_empty=True)

    def bare() -> Iterator[Any]:
        for path in sorted((folder / "data").glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=32, columns=["image.bytes"], use_threads=False):
                    for image in batch.column("image").to_pylist():
                        if image is not None:
                            yield torch.from_numpy(np.array(Image.open(BytesIO(image["bytes"])).convert("RGB")))

    against = f"reading the same Parquet column and Pillow's decoding to an RGB tensor, {cpu}"
    return [_line("loader_decoding_vs_bare_loop", _speed_over(stream, bare), "of its speed", against)]


def _ratio(ours: Callable[[], Any], baseline: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Median over rounds of our time divided by the baseline's; the two alternate."""
    ours()
    baseline()
    ratios = []
    for _ in range(rounds):
        before = _seconds(baseline)
        mine = _seconds(ours)
        after = _seconds(baseline)
        ratios.append(mine / ((before + after) / 2))
    return statistics.median(ratios)


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _speed_over(ours: Iterable[Any], bare: Callable[[], Iterator[Any]], rounds: int = 11) -> float:
    """The bare time over ours, each the least of many rounds, the two taken in turn, for the same number of items.

    Other programs on the machine only ever add to a time.
    """
    found = [(_cpu_seconds(bare()), _cpu_seconds(ours)) for _ in range(rounds)]
    if any(without[1] != with_[1] for without, with_ in found):
        raise ValueError("the two sides decode different images")
    return min(without[0] for without, _ in found) / min(with_[0] for _, with_ in found)


def _cpu_seconds(items: Iterable[Any]) -> tuple[float, int]:
    """CPU time to go through the items, and how many there are."""
    start = time.process_time()
    count = sum(1 for _ in items)
    return time.process_time() - start, count


def _speed(items: Iterable[Any], rounds: int = 3) -> float:
    """Items per second, the best of some rounds after one that warms up."""
    found = [_cpu_seconds(items) for _ in range(rounds + 1)]
    return max(count / seconds for seconds, count in found[1:])


def _cpu() -> str:
    """The processor's name, where the system tells."""
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "unknown CPU"
    names = [text.partition(":")[2].strip() for text in described.splitlines() if text.startswith("model name")]
    return f"{names[0]} CPU" if names else "unknown CPU"


def _line(name: str, value: float, unit: str, against: str) -> dict[str, Any]:
    return {"name": name, "value": round(value, 3), "unit": unit, "against": against}


if __name__ == "__main__":
    main()
