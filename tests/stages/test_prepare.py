from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from phrasebox.stages.contract.errors import RowError
from phrasebox.stages.contract.records import ImageRef, Record, Sample
from phrasebox.stages.prepare import ImagesConfig, PrepareConfig, PrepareStage, target_size_px
from tests.build.datasets import Json
from tests.build.records import image_bytes


def png(width: int, height: int, colour: Any = (10, 20, 30), mode: str = "RGB") -> bytes:
    return image_bytes(Image.new(mode, (width, height), colour))


def record(content: bytes | None = None, **fields: Any) -> Record:
    image = ImageRef(file_name="a.png", content=content, **fields)
    return Record.start(Sample(sample_id="s", source="in.jsonl:3", captions=("a cat",), image=image))


def prepare(*records: Record, images: Json | None = None, **keys: Any) -> list[Record]:
    stage = PrepareStage(PrepareConfig(images=ImagesConfig(**(images or {})), **keys))
    stage.setup()
    answers = stage.process(records)
    stage.teardown()
    return answers


@pytest.mark.parametrize(
    ("keys", "original", "expected"),
    [
        ({"size_px": 224}, (6000, 4000), (224, 224)),
        ({"size_px": (320, 240)}, (100, 100), (320, 240)),
        ({"mode": "keep", "patch_px": 16}, (647, 488), (640, 496)),  # 40.4 and 30.5 patches
        ({"mode": "keep", "patch_px": 32}, (1, 1), (32, 32)),
        ({"mode": "keep", "patch_px": 16, "shorter_side_max_px": 640}, (6000, 4000), (960, 640)),
        ({"mode": "keep", "patch_px": 16, "shorter_side_max_px": 640}, (30_000, 1), (30_000, 16)),
        ({"mode": "keep", "patch_px": 16, "max_side_px": 640}, (30_000, 1), (640, 16)),
        ({"mode": "keep", "patch_px": 16, "max_side_px": 650}, (6000, 6000), (640, 640)),
        ({"mode": "keep", "patch_px": 32, "max_side_px": 10}, (500, 400), (32, 32)),
        (
            {"mode": "keep", "patch_px": 16, "shorter_side_max_px": 640, "max_side_px": 800},
            (6000, 4000),
            (800, 528),
        ),
    ],
)
def test_target_sizes(keys: Json, original: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size_px(PrepareConfig(**keys), *original) == expected


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30_000, 1), (3, 700)])
@pytest.mark.parametrize("keys", [{"size_px": 64}, {"mode": "keep", "patch_px": 32, "max_side_px": 640}])
def test_pixels_and_size(width: int, height: int, keys: Json) -> None:
    (answer,) = prepare(record(png(width, height)), **keys)
    assert answer.error is None
    assert (answer.width_px, answer.height_px) == (width, height)
    assert answer.pixels.rgb.shape == (*target_size_px(PrepareConfig(**keys), width, height)[::-1], 3)
    assert answer.pixels.rgb.reshape(-1, 3).max(axis=0).tolist() == [10, 20, 30]


def test_faults_become_errors_with_their_place_harm_no_neighbour_and_pass_untouched(tmp_path: Path) -> None:
    records = [
        record(png(5, 5)),
        record(b"<html>"),
        record(url=str(tmp_path / "none.png")),
        record(png(50, 50)),
    ]
    answers = prepare(*records, record(png(5, 5)), record(), size_px=8, images={"max_pixels": 100})
    reasons = [None, "bad_image", "missing_image", "image_too_large", None, "missing_image"]
    assert [answer.error and answer.error.reason for answer in answers] == reasons
    assert str(answers[1].error).startswith(
        "bad_image: in.jsonl:3: a web page was saved instead of the image"
    )
    for answer in answers:
        assert answer.sample.image.content is None
        if answer.error is not None:
            assert (answer.pixels, answer.width_px, answer.height_px) == (None, 0, 0)
    failed = replace(record(png(5, 5)), error=RowError(reason="no_caption", detail="x"))
    (answer,) = prepare(failed)
    assert answer is failed


@pytest.mark.parametrize("inline", [False, True])
def test_keeping_the_encoded_image(tmp_path: Path, inline: bool) -> None:
    content = png(5, 5)
    (tmp_path / "a.png").write_bytes(b"##" + content + b"##")
    place = {"url": str(tmp_path / "a.png"), "offset": 2, "size": len(content)}
    given = record(content) if inline else record(**place)
    whole, bad = prepare(given, record(b"no image"), keep_image_bytes=True)
    (dropped,) = prepare(given)
    contents = [answer.sample.image.content for answer in (whole, bad, dropped)]
    assert contents == [content, None, None]
    assert whole.pixels is not None


def test_images_behind_a_url_keep_their_order() -> None:
    for number in range(20):
        with fsspec.open(f"memory://pictures/{number}.png", "wb") as file:
            file.write(png(number + 1, 5))
    records = [record(url=f"memory://pictures/{number}.png") for number in range(20)]
    records.insert(7, record(url="memory://pictures/none.png"))
    records.insert(9, record(png(99, 5)))
    answers = prepare(*records, size_px=8)
    assert [answer.width_px for answer in answers] == [*range(1, 8), 0, 8, 99, *range(9, 21)]


def test_large_jpegs_are_decoded_smaller_by_default() -> None:
    """The sizes are those of the whole image; `images.shrink_jpeg: false` reads all of its pixels."""
    noise = Image.fromarray(np.random.default_rng(0).integers(90, 160, (30, 40, 3), np.uint8))
    given = record(image_bytes(noise.resize((200, 160), Image.Resampling.BICUBIC), "JPEG"))
    (whole,) = prepare(given, size_px=32, images={"shrink_jpeg": False})
    (small,) = prepare(given, size_px=32)
    assert (small.width_px, small.height_px) == (200, 160)
    assert not np.array_equal(whole.pixels.rgb, small.pixels.rgb)
    assert np.abs(whole.pixels.rgb.astype(int) - small.pixels.rgb).max() <= 12


def test_torch_resizes_as_pillow_does_up_to_three_levels() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(90, 160, (300, 20, 3), np.uint8))
    (exact,), (quick,) = (
        prepare(record(image_bytes(noise)), size_px=32, images={"resize": library})
        for library in ("pillow", "torch")
    )
    assert not np.array_equal(exact.pixels.rgb, quick.pixels.rgb)
    assert np.abs(exact.pixels.rgb.astype(int) - quick.pixels.rgb).max() <= 3
