"""Heat maps and regions from Python, for one image and some phrases."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import supervision
import torch
from PIL import Image
from safetensors.torch import load_file

from phrasebox.pipeline.dataset import open_dataset
from phrasebox.pipeline.demo.photographs import FOLDER
from phrasebox.pipeline.located import Located
from phrasebox.pipeline.locator import Locator
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.masks import decode_mask
from phrasebox.stages.contract.records import Rle
from phrasebox.stages.model.catalog import CATALOG
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.tokenizer import tokenizer_of
from phrasebox.testing.explainers import state_of
from tests.build.datasets import Json, rows_of
from tests.closeness import assert_close
from tests.factories import SPEC, tiny_clip
from tests.messages import expect_error

BLACK = np.zeros((8, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def locator() -> Locator:
    return Locator("demo")


@pytest.fixture(scope="module")
def row(inline_dataset: Path) -> Json:
    """The row with the most regions of a run over drawn scenes."""
    return max(rows_of(inline_dataset), key=lambda row: len(row["annotations"]))


@pytest.fixture(scope="module")
def path(row: Json, scenes_folder: Path) -> Path:
    return scenes_folder / "images" / str(row["file_name"])


@pytest.fixture(scope="module")
def located(inline_dataset: Path, row: Json, path: Path) -> Located:
    """The phrases of the row, asked with the run's share of absent phrases."""
    share = open_dataset(inline_dataset).manifest["run"]["absent_share"]
    phrases = list(dict.fromkeys(annotation["phrase"] for annotation in row["annotations"]))
    return Locator("demo", regions={"absent_share": share})(path, phrases)


def test_what_is_found_equals_the_row_of_a_run(located: Located, row: Json) -> None:
    annotations = row["annotations"]
    assert len(annotations) > 1
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    # A batch of another size has other last bits, which move a corner or the edge of a mask.
    assert located.boxes_xyxy_px == pytest.approx(boxes, abs=1)
    coded = [annotation["segmentation"] for annotation in annotations]
    masks = [decode_mask(Rle(size_hw=tuple(one["size"]), counts=one["counts"])) for one in coded]
    assert (located.masks != masks).mean() < 1e-3
    # The steep logistic of presence makes them larger.
    assert located.scores == pytest.approx([annotation["score"] for annotation in annotations], abs=1e-3)
    of_regions = located.presences[located.phrase_indices]
    assert of_regions == pytest.approx([annotation["presence"] for annotation in annotations], abs=1e-3)
    assert (located.heat_maps.dtype, located.faults) == (np.float32, ("",) * len(located.phrases))
    similarities = located.similarities[located.phrase_indices]
    assert similarities == pytest.approx([annotation["similarity"] for annotation in annotations], abs=1e-5)


def test_it_iterates_over_its_regions(located: Located) -> None:
    regions = list(located)
    assert len(regions) == len(located) == len(located.scores) > 1
    assert [region.phrase for region in regions] == [located.phrases[at] for at in located.phrase_indices]
    assert np.array_equal([region.box_xyxy_px for region in regions], located.boxes_xyxy_px)
    assert np.array_equal([region.mask for region in regions], located.masks)
    assert [region.score for region in regions] == pytest.approx(located.scores)
    presences = located.presences[located.phrase_indices]
    assert [region.presence for region in regions] == pytest.approx(presences)
    assert [region.similarity for region in regions] == [region.similarity for region in located.regions]
    words = f"LocatedRegion({regions[0].phrase!r} at "
    assert repr(regions[0]).startswith(words)


PRESENT = {
    "cat.jpg": "a cat",
    "hikers.jpg": "the sky",
    "pagoda.jpg": "red temple",
    "pigeons.jpg": "pigeons",
    "toilet.jpg": "a toilet",
}
ABSENT = ["a zebra", "a toaster", "an elephant", "a pizza"]


@pytest.mark.slow
def test_questions_for_absent_things_mostly_get_no_region() -> None:
    """Each is judged by itself, whatever else the call asks for."""
    locator = Locator("photo")
    informed = Locator("photo", regions={"absent_share": 0.05})
    absent = 0
    believed = 0
    for name, phrase in PRESENT.items():
        alone = locator(FOLDER / name, phrase)
        located = locator(FOLDER / name, [phrase, *ABSENT])
        assert {region.phrase for region in alone} == {phrase}
        assert located.presences[0] == pytest.approx(alone.presences[0], abs=1e-3)
        with_regions = set(located.phrase_indices.tolist())
        assert with_regions == set(np.flatnonzero(located.presences >= 0.5).tolist())
        absent += len(with_regions - {0})
        likelier = informed(FOLDER / name, [phrase, *ABSENT])
        assert (likelier.presences > located.presences).all()
        believed += len(set(likelier.phrase_indices.tolist()) - {0})
    questions = len(PRESENT) * len(ABSENT)
    assert absent < 0.5 * questions
    assert believed > 0.65 * questions


def test_presence_that_nothing_knows_is_no_number() -> None:
    located = Locator.from_open_clip(tiny_clip())(np.full((20, 30, 3), 200, np.uint8), ["car", "dog"])
    assert np.isnan(located.presences).tolist() == [True, True]
    assert [region.presence for region in located] == [None] * len(located)


@pytest.mark.parametrize(
    ("phrase", "embedded"),
    [
        ("a red car", "red car"),
        ("two small dogs", "two small dogs"),
        ("\U0001f697", "\U0001f697"),
    ],
)
def test_a_phrase_is_embedded_as_in_a_run_and_labelled_as_it_is_typed(phrase: str, embedded: str) -> None:
    """Without its article, and in one line of printable letters."""
    locator = Locator.from_open_clip(tiny_clip())
    rgb = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    wanted = locator(rgb, embedded)
    for typed in (phrase, f" {phrase.replace(' ', chr(10) + chr(0) + ' ')}\u200b"):
        located = locator(rgb, typed)
        assert located.phrases == (typed,)
        assert np.array_equal(located.heat_maps, wanted.heat_maps)
        assert located.similarities == wanted.similarities


def test_the_authors_variant_embeds_texts_as_they_are_typed() -> None:
    model = tiny_clip()
    rgb = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    located = Locator.from_open_clip(model, explain={"variant": "authors", "heads": "model"})(
        rgb, ["A red car", "red  car", "two dogs"]
    )
    with torch.no_grad():
        image = model.encode_image(
            from_open_clip(model, spec=SPEC).tower.normalise(torch.from_numpy(rgb[None]))
        )
        texts = model.encode_text(open_clip.tokenize(["A red car", "red car", "two dogs"]))
    assert_close(located.similarities, torch.cosine_similarity(image, texts), 1e-4)
    assert abs(located.similarities[0] - located.similarities[1]) > 1e-3
    assert located.phrases == ("A red car", "red  car", "two dogs")


def test_images_in_memory_are_turned_upright_and_keep_their_transparency(
    locator: Locator, tmp_path: Path
) -> None:
    camera = Image.new("RGB", (64, 32), "red")
    exif = camera.getexif()
    exif[0x0112] = 6
    camera.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(tmp_path / "glass.png")
    for name, size_hw in (("turned.jpg", (64, 32)), ("glass.png", (40, 40))):
        with Image.open(tmp_path / name) as opened:
            by_path = locator(tmp_path / name, "red car")
            in_memory = locator(opened, "red car")
        assert by_path.size_hw == in_memory.size_hw == size_hw
        assert np.array_equal(by_path.heat_maps, in_memory.heat_maps)


def test_a_plural_may_have_several_regions(locator: Locator, path: Path) -> None:
    loose = Locator("demo", regions={"keep_share": 0.0, "min_area_share": 0.0, "rule": "mean"})
    single = loose(path, "a red car")
    several = loose(path, "two red cars")
    assert len(single.scores) == 1
    assert len(several.scores) > 1
    both = Locator("demo", regions={"min_presence": None})(path, ["a car", "a vehicle"])
    assert [region.group for region in both.regions] == both.phrase_indices.tolist() == [0, 1]


def test_regions_as_detections_of_supervision(located, inline_dataset, row, monkeypatch) -> None:
    """Those of one image and those of its row are the same, and supervision merges them."""
    dataset = open_dataset(inline_dataset)
    here = located.to_supervision()
    by_id = dataset.to_supervision(row["sample_id"])
    by_row = dataset.to_supervision(row)
    assert by_id == by_row
    for detections in (here, by_id):
        assert detections.xyxy == pytest.approx(located.boxes_xyxy_px, abs=1)
        assert (detections.mask != located.masks).mean() < 1e-3
        assert detections.confidence == pytest.approx(located.scores, abs=1e-3)
        assert detections.data["class_name"].tolist() == [
            located.phrases[at] for at in located.phrase_indices
        ]
    assert here.class_id.tolist() == located.phrase_indices.tolist()
    assert by_id.class_id.tolist() == [entry["category_id"] for entry in row["annotations"]]
    nothing = dataset.to_supervision({**row, "annotations": []})
    merged = supervision.Detections.merge([nothing, by_id, by_id[:1]])
    assert merged.confidence.size == len(located.scores) + 1
    monkeypatch.setitem(sys.modules, "supervision", None)
    with expect_error(ConfigError):
        located.to_supervision()


def test_a_picture_is_shown_by_a_notebook(located: Located) -> None:
    with Image.open(BytesIO(located._repr_png_())) as shown:
        assert shown.size == (located.size_hw[1], located.size_hw[0])
    assert max(located.picture(side_px=100).size) == 100
    assert located.heat_picture(side_px=120).width == 120 * len(located.phrases)


def test_an_image_of_no_region_has_empty_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()  # no folder hides a bundled model
    monkeypatch.chdir(tmp_path)
    located = Locator("demo", regions={"min_area_px": 100_000})(np.zeros((50, 40, 3), np.uint8), "red car")
    assert (located.boxes_xyxy_px.shape, located.masks.shape, located.scores.shape) == (
        (0, 4),
        (0, 50, 40),
        (0,),
    )
    assert located.picture().size == (40, 50)
    assert repr(located) == "Located(['red car'] in 40 x 50 px: 0 regions)"


@pytest.mark.parametrize(
    ("image", "phrases"),
    [
        (BLACK, []),
        (BLACK, ["dog", " \u200b"]),
        (np.zeros((3, 8, 8), np.float32), "dog"),
        (None, "dog"),
        ("none.jpg", "dog"),
        (b"<html>", "dog"),
    ],
    ids=["no phrase", "an empty phrase", "another array", "nothing", "no file", "a page"],
)
def test_errors_say_what_is_wrong(locator: Locator, image: Any, phrases: Any) -> None:
    with expect_error(ConfigError, InputError):
        locator(image, phrases)


def test_a_model_in_memory_is_only_read() -> None:
    model = tiny_clip().train()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    before = state_of(model)
    locator = Locator.from_open_clip(model)
    assert repr(locator).startswith("Locator(open_clip by grad_eclip on ")
    located = locator(np.full((20, 30, 3), 200, np.uint8), ["red car", "two dogs"])
    assert state_of(model) == before
    assert located.heat_maps.shape == (2, 4, 4)
    with expect_error(ConfigError, key="regions.calibration"):
        Locator.from_open_clip(model, regions={"calibration": "some.json"})
    with expect_error(ConfigError):
        Locator.from_open_clip(torch.nn.Linear(2, 2))
    with expect_error(ConfigError):
        Locator(model)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "switched",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: torch.device("meta"),
    ],
)
def test_whatever_is_switched_on_around_it(
    switched: Any, locator: Locator, path: Path, located: Located
) -> None:
    with switched():
        again = locator(path, located.phrases)
    assert np.array_equal(again.heat_maps, located.heat_maps)


def test_models_with_adapters_and_wrapped_ones() -> None:
    class Adapted(torch.nn.Module):
        weight, bias = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))

    wrapped = torch.nn.DataParallel(tiny_clip())
    assert Locator.from_open_clip(wrapped)(np.full((20, 30, 3), 200, np.uint8), "dog").heat_maps.shape == (
        1,
        4,
        4,
    )
    model = tiny_clip()
    model.visual.transformer.resblocks[-1].mlp.c_fc = Adapted()
    with expect_error(ConfigError):
        Locator.from_open_clip(model)


def test_a_model_in_memory_gives_what_its_files_give(path: Path) -> None:
    """The demo model by name, and the same weights as open_clip has them in memory."""
    described = describe(ModelConfig(name="demo"))
    model = open_clip.CLIP(**described.architecture).eval()
    model.load_state_dict(load_file(str(described.weights)))
    spec = described.input
    open_clip.model.set_model_preprocess_cfg(
        model, {"mean": spec.mean, "std": spec.std, "size": spec.size_px}
    )
    with expect_error(ConfigError):
        Locator.from_open_clip(model)
    phrases = ["red car", "two dogs"]
    brought: Any = CATALOG["demo"].settings
    tokenize = tokenizer_of(describe(ModelConfig(name="demo")))
    mine = Locator.from_open_clip(model, tokenize, **brought)(path, phrases)
    named = Locator({"name": "demo", "precision": "fp32"}, regions={"calibration": "none"})(path, phrases)
    assert_close(mine.heat_maps, named.heat_maps)
    assert np.allclose(mine.similarities, named.similarities, atol=1e-5)
    assert np.allclose(mine.scores, named.scores, atol=1e-3)
