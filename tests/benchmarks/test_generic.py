"""The generic calibration is fitted to the maps of several models: the fit and its figures, on synthetic scenes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.generic.__main__ import margin_of, table_of
from benchmarks.generic.fit import Source, fit_sources
from benchmarks.generic.heads import GRID, HeadBlock, ImageHead, TextHead
from benchmarks.generic.maps import Labels, MapSet
from benchmarks.generic.models import RECIPES, tower_of
from benchmarks.generic.train import CaptionedPhotographs, TrainingPlan, train_heads
from benchmarks.generic.transfer import answer, brought
from benchmarks.generic.trunks import FrozenTrunk
from phrasebox.pipeline.calibrate import box_fit
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run import presence_fit
from phrasebox.pipeline.run.stage_calls import set_up
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.pipeline.run.warm_up import fit_to_samples
from phrasebox.stages.read import make_reader
from phrasebox.stages.scores.learned_box import FACTS
from phrasebox.stages.truth import read_truth
from tests.pipeline.commands.evaluated import drawing

drawn = drawing(24, 43)


def trunk(stride_px: int) -> FrozenTrunk:
    """A small network in place of one that was trained on ImageNet."""
    torch.manual_seed(0)
    body = torch.nn.Conv2d(3, 320, stride_px, stride=stride_px).to(torch.bfloat16).requires_grad_(False)
    return FrozenTrunk(
        name="small",
        stride_px=stride_px,
        body=body,
        head_weight=torch.randn(1280, 320) / 20,
        head_bias=torch.zeros(1280),
    )


@pytest.mark.parametrize("name", ["lite0-pool", "lite0-blocks", "lite1-pool"])
def test_a_tower_embeds_as_the_head_that_was_trained(name: str) -> None:
    recipe = replace(RECIPES[name], size_px=GRID * RECIPES[name].stride_px)
    network = trunk(recipe.stride_px)
    head = ImageHead(network, recipe.depth).eval().requires_grad_(False)
    rgb = torch.randint(0, 256, (2, recipe.size_px, recipe.size_px, 3), dtype=torch.uint8)
    places = torch.arange(GRID * GRID).expand(2, -1)
    embeddings, _ = head(network.features(rgb), places)
    tower = tower_of(recipe, network, head)
    encoded = torch.nn.functional.normalize(tower.encode(rgb).float(), dim=-1)
    cosines = (encoded * embeddings).sum(dim=-1)
    assert cosines.min() > 0.999, "both compute in bf16"


@pytest.mark.slow
def test_heads_learn_which_caption_is_of_which_photograph() -> None:
    rng = np.random.default_rng(0)
    kinds = ["dog", "cat", "bus", "boat"]
    vectors = {kind: torch.randn(384) for kind in kinds}
    photographs = CaptionedPhotographs(
        files=[Path(f"{number}.png") for number in range(40)],
        captions=[
            [f"a {kinds[number % 4]} {number}", f"the {kinds[number % 4]} {number}"] for number in range(40)
        ],
        phrases=[[kinds[number % 4]] for number in range(40)],
    )
    patterns = rng.normal(size=(4, 1, 320))
    features = np.stack([np.repeat(patterns[number % 4], GRID * GRID, axis=0) for number in range(40)])

    def encode(texts: Any) -> Any:
        return torch.stack([next(vectors[kind] for kind in kinds if kind in text) for text in texts])

    image, text, _ = train_heads(
        trunk(16),
        features.astype(np.float16),
        photographs,
        encode,
        TrainingPlan(depth=1, steps=30, keep=16),
    )
    places = torch.arange(GRID * GRID).expand(4, -1)
    embeddings, _ = image(torch.from_numpy(features[:4]).float(), places)
    cosines = embeddings @ text(encode(kinds)).T
    assert cosines.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert isinstance(image.blocks[0], HeadBlock)
    assert isinstance(text, TextHead)


@pytest.fixture(scope="module")
def source(drawn: Path) -> Source:
    """The maps of `demo`, with presence as a run fits it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence_fit, "FEWEST_IMAGES", 10)
        patch.setattr(presence_fit, "FEWEST_PHRASES", 10)
        config = RunConfig(
            input={"path": str(drawn / "captions.jsonl"), "image_root": str(drawn / "images")},
            model={"name": "demo"},
            explain={"contrast": 0.0},
            regions={"calibration": "none"},
        )
        steps = build_steps(config)
        reader = make_reader(config.input)
        with set_up(steps.first_stages):
            answers = fit_to_samples(steps, reader.samples(reader.pieces()))
    maps = MapSet(source="demo, grad_eclip", records=answers.records, exponent=1.0, reason="")
    return Source(maps, Labels(read_truth(drawn / "truth.json"), maps.records, resized=False))


def test_the_fit_weighs_no_cosine_and_finds_more_boxes_than_none(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_fit, "EPOCHS", 2)
    flat = replace(source.maps, source="demo, flat", exponent=0.7)
    generic = fit_sources([source, Source(flat, source.labels)])
    assert generic.is_generic
    assert generic.made_from["sources"] == ["demo, grad_eclip", "demo, flat"]
    assert not generic.weight.keys() & {"similarity", "of_thing_similarity"}
    assert generic.box is not None
    rows = generic.box._layers[0][0]
    place = len(rows) - 1 - 4 - len(FACTS) + FACTS.index("similarity")
    assert not rows[place].any()
    assert rows[place - 1].any()
    before, after = answer(source, None), answer(source, brought(generic, source.maps))
    assert after.recall.value >= before.recall.value - 0.05
    assert after.gain_over(before).n == len(before.hits)


@pytest.mark.parametrize("languages", [("fr",), ("en", "fr")], ids=["French", "English and French"])
def test_phrases_in_other_languages_teach_no_usual_sizes_and_places(
    source: Source, languages: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nouns of other languages are spelt as other nouns of English."""
    monkeypatch.setattr(box_fit, "EPOCHS", 1)
    records = [
        replace(
            record,
            phrases=tuple(
                replace(phrase, language=language, head=phrase.head if language == "en" else "pain")
                for phrase in record.phrases
            ),
        )
        for number, record in enumerate(source.maps.records)
        for language in [languages[number % len(languages)]]
    ]
    fitted = fit_sources([Source(replace(source.maps, records=records), source.labels)])
    assert fitted.cut is not None
    assert fitted.box is not None
    assert bool(fitted.cut.usual) == bool(fitted.box.usual.words) == ("en" in languages)
    assert "pain" not in fitted.cut.usual
    assert "=pain" not in fitted.box.usual.words


def test_the_margin_is_the_largest_excess_rounded_up() -> None:
    def target(first: float, second: float) -> Any:
        return {"dev": {"generic": {"excess": first}}, "dev, one caption": {"generic": {"excess": second}}}

    assert margin_of([target(0.011, -0.2), target(0.0, 0.051)]) == 0.06
    assert margin_of([target(-0.1, -0.2)]) == 0.0


def test_the_table_has_a_row_for_each_target() -> None:
    gain = {"value": 0.05, "low": 0.03, "high": 0.07}
    figures = {"recall": {"value": 0.3}, "gain over none": gain, "error": {"value": 0.02}, "excess": 0.01}
    split = dict.fromkeys(("none", "generic", "own"), figures)
    table = table_of({"photo, maskclip": {"dev": split, "coco": split, "dev, one caption": split}})
    assert table.splitlines()[-1].startswith("| photo, maskclip | 0.300 | +0.050 (0.030 to 0.070) |")
