"""The stages beside the model, each alone on one core."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bench.model import WORDS
from pipeline.bench.timing import line, ratio_of
from pipeline.scenes import make_scene
from stages.contract.records import HeatMap, Phrase, Pixels, Record, Sample
from stages.phrases.noun_phrases import load_pipeline
from stages.phrases.stage import PhrasesConfig, PhrasesStage
from stages.regions.config import RegionsConfig
from stages.regions.stage import RegionsStage


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
        line(name, images * count / _stage_seconds(config, batch), "maps/s", against)
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

    ratio = ratio_of(ours, bare, rounds=3)
    return [line("phrases_vs_nlp_pipe", ratio, "ratio", "nlp.pipe, same components, same batches")]
