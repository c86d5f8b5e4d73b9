"""The host waits for the device once a batch. torch's device "meta" takes the place of a GPU: it has no numbers.

So whatever the host would have to wait for (`item`, `bool` and `tolist` of a tensor, `nonzero`, a boolean mask as an
index, `cpu`) raises, and what goes from the host to the device is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stages.contract.records import Phrase, Pixels, Record, Sample
from stages.explain.grad_eclip import GradEclip, GradEclipConfig
from stages.explain.presence import ImageStatistics, Presence
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.shared.model.clip import ClipModel
from stages.shared.model.config import ModelConfig
from stages.shared.model.device import OnTheWay
from stages.shared.model.load import from_open_clip
from tests.factories import TOWERS
from tests.stages.explain.models import tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "two scales": {"scales": (1.0, 0.5), "affinity": "propagation"},
    "projected, one head": {"similarity": "projected", "heads": "single"},
}

TEXTS = [f"dog {number}" for number in range(32)]


def on_meta(tower: str = "class token") -> tuple[ClipModel, int]:
    """A model on the device without numbers, and the side of its images."""
    make, spec = TOWERS[tower]
    model = make()
    numbers = {name: getattr(model, name) for name in ("logit_scale", "logit_bias")}  # which are read
    model.to("meta")
    for name, number in numbers.items():
        setattr(model, name, number)
    return from_open_clip(model, tokenizer, spec), spec.size_px


class Told(TorchDispatchMode):
    """Counts what a device is told: operations that compute something there, and copies to it.

    `waits` are copies to or from it that the host waits for, `copies` the others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.copies = self.waits = 0

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        answer = function(*arguments, **options)
        given = {each.device.type for each in arguments if isinstance(each, Tensor)}
        made = {answer.device.type} if isinstance(answer, Tensor) else set()
        copies = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if copies and len(given | made) > 1:
            goes_on = options.get("non_blocking", False)
            self.copies += goes_on
            self.waits += not goes_on
        elif "meta" in given | made and not is_view(function):
            self.launches += 1
        return answer


class Listed(TorchFunctionMode):
    """Counts lists of numbers that become tensors of a device, for which the host waits, among the waits of a mode."""

    def __init__(self, mode: Told) -> None:
        super().__init__()
        self.mode = mode

    def __torch_function__(self, function: Any, _: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(options.get("device") or "cpu").type != "cpu":
            self.mode.waits += 1
        return function(*arguments, **options)


def is_view(function: Any) -> bool:
    aliases = [each.alias_info for each in function._schema.arguments]
    looks = any(each is not None and not each.is_write for each in aliases)
    return looks or function in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)


@pytest.fixture(autouse=True)
def name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is no GPU that could be asked for its name."""
    monkeypatch.setattr("stages.shared.model.clip.device_name", str)


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the host waited for results, which are made up: the device has none."""
    found: Counter[str] = Counter()

    def wait(self: OnTheWay) -> list[Any]:
        found["waits"] += 1
        return [np.full(each.shape, 0 if each.dtype == torch.int64 else 1, np.float32) for each in self._copies]

    monkeypatch.setattr(OnTheWay, "wait", wait)
    return found


def records(images: int, phrases: int, side_px: int) -> list[Record]:
    said = ", ".join(TEXTS[:phrases])
    own = tuple(Phrase(text=text, caption_index=0, start=0, end=5, head="dog") for text in TEXTS[:phrases])
    rgb = np.zeros((side_px, side_px, 3), np.uint8)
    samples = [Sample(sample_id=str(number), source="test", captions=(said,)) for number in range(images)]
    return [Record(sample=sample, phrases=own, pixels=Pixels(rgb=rgb)) for sample in samples]


def told(stage: ExplainStage, images: int, phrases: int, side_px: int) -> Told:
    mode = Told()
    with mode, Listed(mode):
        answers = stage.process(records(images, phrases, side_px))
    assert [len(answer.heat_maps) for answer in answers] == [phrases] * images
    return mode


@pytest.fixture(params=[*SETTINGS, "presence", "ResNet", "SigLIP"])
def case(request: pytest.FixtureRequest) -> Iterator[tuple[ExplainStage, int]]:
    """A stage of two images a batch that knows its texts, and the side of its images."""
    model, side_px = on_meta(request.param if request.param in TOWERS else "class token")
    config = GradEclipConfig(**SETTINGS.get(request.param, {}))
    presence = None
    if request.param == "presence":
        statistics = ImageStatistics.of(np.random.default_rng(0).normal(size=(9, model.embed_dim)).astype(np.float32))
        ones = {"similarity": 1.0, "local": 1.0}
        presence = Presence(images=statistics, bias=0.0, weight=ones, mean=ones, scale=ones)
    stage = ExplainStage(ExplainStageConfig(model=ModelConfig(batch_size=2), explainer=config), model, presence)
    stage.setup()
    stage._explainer.learn([TEXTS])
    yield stage, side_px
    stage.teardown()


def test_the_host_waits_once_a_batch_whatever_it_holds(case: tuple[ExplainStage, int], waited: Counter[str]) -> None:
    stage, side_px = case
    for batches, phrases in ((1, 1), (2, 16)):
        waited.clear()
        found = told(stage, 2 * batches, phrases, side_px)
        assert found.waits == 0, "nothing but the results is waited for"
        assert waited["waits"] == batches
        assert found.copies == 2 * batches, "the pixels, and where the texts are"


def test_launches_follow_the_phrases_of_one_image_and_not_the_images(waited: Counter[str]) -> None:
    model, side_px = on_meta()
    found: dict[tuple[int, int], int] = {}
    for size in (2, 8):
        explainer = GradEclipConfig(blocks=4, affinity="none")
        stage = ExplainStage(ExplainStageConfig(model=ModelConfig(batch_size=size), explainer=explainer), model)
        stage.setup()
        stage._explainer.learn([TEXTS])
        for phrases in (1, 8, 16, 24):
            found[size, phrases] = told(stage, size, phrases, side_px).launches
    assert found[2, 1] == found[2, 8] == found[8, 8], "eight phrases cost what one costs, eight images what two do"
    steps = [found[8, phrases + 8] - found[8, phrases] for phrases in (8, 16)]
    assert steps[0] == steps[1] == found[2, 24] - found[2, 16], "each further eight cost the same"
    assert steps[0] < found[8, 8] / 2


def test_new_texts_are_sent_without_a_wait() -> None:
    explainer = GradEclip(GradEclipConfig(), on_meta()[0])
    mode = Told()
    with mode, Listed(mode):
        explainer.learn([TEXTS, ["a very long phrase " * 5, "a dog, a cat and a boat"]])
    assert mode.waits == 0
    assert mode.copies > 0


@pytest.mark.parametrize("name", ["item", "tolist", "nonzero", "cpu", "__bool__"])
def test_a_wait_would_be_noticed(name: str) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        getattr(torch.zeros(1, device="meta"), name)()
    mode = Told()
    with mode, Listed(mode):
        torch.zeros(3).to("meta")
        torch.zeros(3).to("meta", non_blocking=True)
        torch.tensor([1, 2], device="meta")
    assert (mode.waits, mode.copies) == (2, 1)
