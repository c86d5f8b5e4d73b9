"""What a GPU is told for a batch of the real size, without a GPU: launches, products and bytes, as JSON lines.

`python -m benchmarks.traced` traces ViT-B-16 with the settings of configs/photos-gpu.yaml on tensors without numbers
(FakeTensorMode) of a device that says `cuda`. Nothing is computed, so it takes seconds. What an H100 would make of it
is an estimate: no time was measured on a GPU. Captions of the batch are new, as they are in a run, and phrases are
known.
"""

from __future__ import annotations

import json
import sys

from benchmarks.guard import NO_COMPILER, has_compiler, load_guard

if __name__ == "__main__":
    if not has_compiler():
        print(NO_COMPILER, file=sys.stderr)
        sys.exit()
    load_guard()  # before anything imports torch

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.captions import make_captions
from phrasebox.pipeline.terminal import counted
from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.explain import base
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.stage import BATCH_SIZES, ExplainStage, ExplainStageConfig
from phrasebox.stages.model import text_cache
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.text_encoder import PASSES, TextEncoder, TextTower, split_by_length
from phrasebox.stages.scores.presence import ImageStatistics, Presence

aten = torch.ops.aten

ARCHITECTURE = open_clip.get_model_config("ViT-B-16")

CONFIG = Path(__file__).parents[1] / "configs/photos-gpu.yaml"

BATCHES = ((8, 5), (16, 5), (24, 5), (16, 1))
"""Phrases and captions of each image."""

IMAGES, SIDE = BATCH_SIZES["cuda"], 224

TFLOPS = {"bf16": 425.0, "fp32": 42.0}
"""What an H100 SXM reaches in large products, in TFLOP/s: four tenths of its bf16 and two thirds of its fp32 peak."""

GB_PER_S = 2700.0  # four fifths of its memory's peak
TRAFFIC = 2.5  # bytes that an elementwise operation moves for each that it writes
LAUNCH_S = 8e-6  # a host's time for an operation, by torch's dispatcher and Python

SPECIFICATION = "estimate: " + ", ".join(
    [
        *(f"{speed:.0f} TFLOP/s in {name}" for name, speed in TFLOPS.items()),
        f"{GB_PER_S:.0f} GB/s",
        "8 us a launch",
    ]
)


class Told(TorchDispatchMode):
    """Counts what the device is told. Attention counts as one launch, as CUDA fuses it.

    Views, and questions for the device of a tensor, launch nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches, self.written, self.copies = 0, 0, 0
        self.products: Counter[torch.dtype] = Counter()  # precision -> FLOP

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        answer = function(*arguments, **(options or {}))
        given = [each for each in _flat((arguments, options or {})) if isinstance(each, Tensor)]
        made = [each for each in _flat((answer,)) if isinstance(each, Tensor)]
        devices = {each.device.type for each in (*given, *made)}
        if "cuda" not in devices or _is_view(function) or function.namespace == "prim":
            return answer
        self.launches += 1
        self.written += sum(each.numel() * each.element_size() for each in made)
        self.copies += devices == {"cpu", "cuda"}
        if function in (aten.mm.default, aten.bmm.default):
            self.products[given[0].dtype] += 2 * given[0].numel() * given[1].shape[-1]
        elif function is aten.addmm.default:
            self.products[given[0].dtype] += 2 * given[1].numel() * given[2].shape[-1]
        elif function is aten.convolution.default:
            self.products[given[0].dtype] += 2 * made[0].numel() * given[1][0].numel()
        return answer


def _flat(values: Any) -> Iterator[Any]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, (list, tuple, dict)):
            yield from _flat(value)
        else:
            yield value


def _is_view(function: Any) -> bool:
    aliases = any(
        each.alias_info is not None and not each.alias_info.is_write for each in function._schema.arguments
    )
    return aliases or function in (aten.detach.default, aten._unsafe_view.default)


class WithoutNumbers:
    """Takes the place of `PendingTransfer`: tensors without numbers do not arrive."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    def wait(self) -> list[Any]:
        """Return arrays of zeros."""
        return [
            np.zeros(tuple(each.shape), np.float32 if each.is_floating_point() else np.int64)
            for each in self.tensors
        ]


def records(phrases: int, captions: int, images: int = IMAGES) -> list[Record]:
    """Return records of so many phrases each, the same ones, and of so many captions, which never repeat."""
    image_phrases = tuple(
        Phrase(text=f"dog {n}", caption_index=0, start=0, end=5, head="dog") for n in range(phrases)
    )
    pixels = Pixels(rgb=np.zeros((SIDE, SIDE, 3), np.uint8))
    texts = iter(make_captions(images * captions))
    samples = [
        Sample(sample_id=str(number), source="", captions=tuple(islice(texts, captions)))
        for number in range(images)
    ]
    return [Record(sample=sample, phrases=image_phrases, pixels=pixels) for sample in samples]


class Tracing:
    """ViT-B-16 in bf16 on a device without numbers, and the places put aside that have to see numbers."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        torch.set_default_dtype(torch.bfloat16)  # a module without numbers cannot be converted afterwards
        with mode, torch.device("cuda"):
            model = open_clip.CLIP(**ARCHITECTURE).eval()
            # Layer norms of texts keep fp32 in a run in bf16.
            for norm in (
                each for each in model.transformer.modules() if isinstance(each, torch.nn.LayerNorm)
            ):
                norm.weight, norm.bias = (
                    torch.nn.Parameter(each.float()) for each in (norm.weight, norm.bias)
                )
        torch.set_default_dtype(torch.float32)
        del model.logit_scale  # a number, which is read
        model.logit_scale = mock.MagicMock()
        with mode:
            self.clip: ClipModel = from_open_clip(model)

    def told(self, settings: dict[str, Any], phrases: int, captions: int) -> Told:
        """Count what the device is told for a batch of images with so many phrases and captions each.

        Phrases were embedded before, and captions are new.
        """
        statistics = ImageStatistics.of(np.random.default_rng(0).normal(size=(80, 512)).astype(np.float32))
        ones = {"similarity": 1.0, "local": 1.0}
        presence = Presence(images=statistics, bias=0.0, weight=ones, mean=ones, scale=ones)
        config = ExplainStageConfig(
            model=ModelConfig(batch_size=IMAGES), explainer=GradEclipConfig(**settings)
        )
        stage = ExplainStage(config, self.clip, presence)
        batch = records(phrases, captions)
        with ExitStack() as aside:
            for place, name, instead in (
                (torch.cuda, "get_device_name", lambda *_: "none"),
                (torch.cuda, "current_device", lambda: 0),
                (TextEncoder, "__call__", encode_without_numbers),
                (text_cache, "to_device", lambda values, device: values.to(device)),
                (
                    base,
                    "pixels_on",
                    lambda images, device: torch.empty(len(images), SIDE, SIDE, 3, device=device).byte(),
                ),
                (base, "PendingTransfer", WithoutNumbers),
                (
                    torch.nn.functional,
                    "scaled_dot_product_attention",
                    lambda q, *_, **__: torch.empty_like(q),
                ),
            ):
                aside.enter_context(mock.patch.object(place, name, instead))
            aside.enter_context(self.mode)
            stage.setup()
            stage._explainer.texts.embed_ahead([phrase.text for phrase in batch[0].phrases])
            told: Told = aside.enter_context(Told())
            stage.process(batch)
        return told


def encode_without_numbers(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Take the place of `TextEncoder.__call__`: the lengths of texts decide its passes, so they are real."""
    tower = encoder.tower
    assert isinstance(tower, TextTower)
    with unset_fake_temporarily():
        tokens: Tensor = encoder.tokenizer(list(texts))
        lengths = (tokens if tower.end is None else (tokens == tower.end).int()).argmax(dim=-1) + 1
        passes = [(length, len(rows)) for length, rows in split_by_length(lengths, PASSES["cuda"])]
    parts = [
        tower.encode(torch.zeros(rows, length, dtype=torch.int64).to(encoder.device))
        for length, rows in passes
    ]
    return torch.cat(parts)[torch.arange(len(texts)).to(encoder.device)]


def figures() -> Iterator[dict[str, Any]]:
    """Yield the figures."""
    torch.cuda._lazy_init = lambda: None
    tracing = Tracing(FakeTensorMode(allow_non_fake_inputs=True))
    settings = yaml.safe_load(CONFIG.read_text()).get("explain", {})
    for phrases, captions in BATCHES:
        told = tracing.told(settings, phrases, captions)
        products = {
            "bf16": told.products[torch.bfloat16] / 1e12,
            "fp32": told.products[torch.float32] / 1e12,
        }
        device_s = (
            sum(products[name] / TFLOPS[name] for name in TFLOPS) + TRAFFIC * told.written / GB_PER_S / 1e9
        )
        load = f"{counted(phrases, 'phrase')} and {counted(captions, 'new caption')} an image"
        what = f"{load}, batch {IMAGES}, ViT-B-16 in bf16, {CONFIG.name}, traced without a GPU"
        for name, value, unit, against in (
            ("launches", told.launches, "launches", what),
            *((f"products_{name}", value, "TFLOP", what) for name, value in products.items()),
            ("written", told.written / 1e9, "GB", what),
            ("h100_device", 1000 * device_s, "ms", SPECIFICATION),
            ("h100_launching", 1000 * LAUNCH_S * told.launches, "ms", SPECIFICATION),
            (
                "h100_images_per_second",
                IMAGES / max(device_s, LAUNCH_S * told.launches),
                "images/s",
                SPECIFICATION,
            ),
        ):
            yield {
                "name": f"traced_{phrases}x{captions}_{name}",
                "value": round(value, 3),
                "unit": unit,
                "against": against,
            }


if __name__ == "__main__":
    for figure in figures():
        print(json.dumps(figure), flush=True)
