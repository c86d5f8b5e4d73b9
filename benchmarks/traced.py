"""What a GPU is told for a batch of the real size, without a GPU: launches, products and bytes, as JSON lines.

`python -m benchmarks.traced` traces ViT-B-16 with the settings of configs/photos-gpu.yaml on tensors without numbers
(FakeTensorMode) of a device that says `cuda`. Nothing is computed, so it takes seconds. What an H100 would make of it
is an estimate: no time was measured on a GPU.
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
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import open_clip
import torch
import yaml
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from phrasebox.stages.contract.records import Phrase, Pixels, Record, Sample
from phrasebox.stages.explain import base
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.explain.stage import BATCH_SIZES, ExplainStage, ExplainStageConfig
from phrasebox.stages.model.clip import ClipModel, TextCache
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.scores.presence import ImageStatistics, Presence

aten = torch.ops.aten

ARCHITECTURE = open_clip.get_model_config("ViT-B-16")

CONFIG = Path(__file__).parents[1] / "configs/photos-gpu.yaml"

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
    """Counts what the device is told. Views are free, and attention counts as one launch, as CUDA fuses it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches, self.written, self.copies = 0, 0, 0
        self.products: Counter[torch.dtype] = Counter()  # precision -> FLOP

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        answer = function(*arguments, **(options or {}))
        given = [each for each in _flat((arguments, options or {})) if isinstance(each, Tensor)]
        made = [each for each in _flat((answer,)) if isinstance(each, Tensor)]
        devices = {each.device.type for each in (*given, *made)}
        if "cuda" not in devices or _is_view(function):
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


def records(phrases: int, images: int = IMAGES) -> list[Record]:
    """Return records of so many phrases each."""
    image_phrases = tuple(
        Phrase(text=f"dog {n}", caption_index=0, start=0, end=5, head="dog") for n in range(phrases)
    )
    sample, pixels = (
        Sample(sample_id="1", source="", captions=("a dog",)),
        Pixels(rgb=np.zeros((SIDE, SIDE, 3), np.uint8)),
    )
    return [Record(sample=sample, phrases=image_phrases, pixels=pixels)] * images


class Tracing:
    """ViT-B-16 in bf16 on a device without numbers, and the places put aside that have to see numbers."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        torch.set_default_dtype(torch.bfloat16)  # a module without numbers cannot be converted afterwards
        with mode, torch.device("cuda"):
            model = open_clip.CLIP(**ARCHITECTURE).eval()
        torch.set_default_dtype(torch.float32)
        del model.logit_scale  # a number, which is read
        model.logit_scale = mock.MagicMock()
        with mode:
            self.clip: ClipModel = from_open_clip(model)

    def told(self, settings: dict[str, Any], phrases: int) -> Told:
        """Count what the device is told for a batch of images with so many phrases each, whose texts are known."""
        statistics = ImageStatistics.of(np.random.default_rng(0).normal(size=(80, 512)).astype(np.float32))
        ones = {"similarity": 1.0, "local": 1.0}
        presence = Presence(images=statistics, bias=0.0, weight=ones, mean=ones, scale=ones)
        config = ExplainStageConfig(
            model=ModelConfig(batch_size=IMAGES), explainer=GradEclipConfig(**settings)
        )
        stage = ExplainStage(config, self.clip, presence)
        with ExitStack() as aside:
            for place, name, instead in (
                (torch.cuda, "get_device_name", lambda *_: "none"),
                (torch.cuda, "current_device", lambda: 0),
                (TextCache, "embed_ahead", lambda *_: None),
                (TextCache, "embed_padded", lambda _, given, step: self.texts(given, step)),
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
            told: Told = aside.enter_context(Told())
            stage.process(records(phrases))
        return told

    def texts(self, given: Sequence[Sequence[str]], step: int) -> Tensor:
        """Return embeddings without numbers, padded to a step."""
        longest = -(-max(map(len, given)) // step) * step
        return torch.empty(len(given), longest, ARCHITECTURE["embed_dim"], device="cuda")


def figures() -> Iterator[dict[str, Any]]:
    """Yield the figures."""
    torch.cuda._lazy_init = lambda: None
    tracing = Tracing(FakeTensorMode(allow_non_fake_inputs=True))
    settings = yaml.safe_load(CONFIG.read_text()).get("explain", {})
    for phrases in (8, 16, 24):
        told = tracing.told(settings, phrases)
        products = {
            "bf16": told.products[torch.bfloat16] / 1e12,
            "fp32": told.products[torch.float32] / 1e12,
        }
        device_s = (
            sum(products[name] / TFLOPS[name] for name in TFLOPS) + TRAFFIC * told.written / GB_PER_S / 1e9
        )
        what = f"{phrases} phrases an image, batch {IMAGES}, ViT-B-16 in bf16, {CONFIG.name}, traced without a GPU"
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
                "name": f"traced_{phrases}_{name}",
                "value": round(value, 3),
                "unit": unit,
                "against": against,
            }


if __name__ == "__main__":
    for figure in figures():
        print(json.dumps(figure), flush=True)
