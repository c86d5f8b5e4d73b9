"""Images of every kind people have, through the whole pipeline: sizes, and masks as pycocotools reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from rich.console import Console
from torchvision.ops import box_area, masks_to_boxes

from pipeline.config import RunConfig
from pipeline.dataset.validate import validate
from pipeline.run import run

CAPTION = "A red car and two green fish next to a big house"


def photograph(width: int, height: int) -> np.ndarray:
    """Something with the smooth shades, edges and noise of a photograph, uint8 (height, width, 3)."""
    rng = np.random.default_rng(width * height)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    base = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-12, 13, (min(height, 400), min(width, 400), 1))
    tiled = np.tile(noise, (-(-height // noise.shape[0]), -(-width // noise.shape[1]), 1))[:height, :width]
    return np.clip(base + tiled, 0, 255).astype(np.uint8)


def write_corpus(folder: Path) -> dict[str, tuple[int, int]]:
    """Image files of many kinds; name -> (width, height) after EXIF rotation."""
    folder.mkdir()
    rgb = Image.fromarray(photograph(320, 240))
    rgb.save(folder / "plain.jpg", quality=90)
    rgb.save(folder / "plain.png")
    rgb.save(folder / "plain.webp", quality=80)
    rgb.save(folder / "progressive.jpg", progressive=True)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "grey.jpg")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png", transparency=3)
    rgb.convert("1").save(folder / "one_bit.png")
    transparent = rgb.copy()
    transparent.putalpha(128)
    transparent.save(folder / "transparent.png")
    Image.fromarray(photograph(320, 240)[..., 0].astype(np.uint16) * 257).save(folder / "sixteen_bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "rotated.jpg", exif=exif)
    Image.fromarray(photograph(1, 1)).save(folder / "one_pixel.png")
    Image.fromarray(photograph(3000, 2000)).save(folder / "huge.jpg", quality=85)
    Image.fromarray(photograph(3000, 7)).save(folder / "strip.jpg")
    rgb.save(folder / "animated.gif", save_all=True, append_images=[rgb.rotate(90)])
    rgb.save(folder / "tiff.tif")
    sizes = dict.fromkeys((path.name for path in folder.iterdir()), (320, 240))
    return sizes | {
        "rotated.jpg": (240, 320),
        "one_pixel.png": (1, 1),
        "huge.jpg": (3000, 2000),
        "strip.jpg": (3000, 7),
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, int]]]:
    root = tmp_path_factory.mktemp("photographs")
    sizes = write_corpus(root / "images")
    rows = [{"image": name, "caption": CAPTION} for name in sorted(sizes)]
    rows += [{"image": "missing.jpg", "caption": CAPTION}, {"image": "text.jpg", "caption": CAPTION}]
    (root / "images" / "text.jpg").write_text("<html>not found</html>")
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(
        {
            "input": {"kind": "jsonl", "path": str(root / "captions.jsonl"), "image_root": str(root / "images")},
            "model": {"name": "demo"},
            "engine": {"kind": "inline"},
            "output": {"path": str(root / "out"), "embed_images": True},
        }
    )
    run(config, Console(quiet=True))
    return root / "out", sizes


@pytest.fixture(scope="module")
def rows(corpus) -> list[dict[str, Any]]:
    return [row for path in (corpus[0] / "data").glob("*.parquet") for row in pq.read_table(path).to_pylist()]


def test_every_image_is_one_row_with_its_upright_size(corpus, rows) -> None:
    out, sizes = corpus
    assert list(validate(out)) == []
    found = {row["file_name"]: (row["width"], row["height"]) for row in rows if row["error"] is None}
    assert found == sizes
    errors = {row["file_name"]: row["error"] for row in rows if row["error"] is not None}
    assert errors == {"missing.jpg": "missing_image", "text.jpg": "bad_image"}


def test_pycocotools_and_torchvision_read_boxes_and_masks(rows, tmp_path, capsys) -> None:
    annotations = [annotation for row in rows for annotation in row["annotations"]]
    assert annotations
    truth = {
        "images": [{key: row[key] for key in ("id", "file_name", "width", "height")} for row in rows],
        "annotations": annotations,
        "categories": [{"id": i, "name": str(i)} for i in {a["category_id"] for a in annotations}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(truth))
    coco = COCO(str(tmp_path / "coco.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        x0, y0, x1, y1 = masks_to_boxes(torch.from_numpy(mask)[None])[0].tolist()
        # torchvision's boxes of masks end at the last pixel, ours after it.
        assert annotation["bbox"] == [x0, y0, x1 - x0 + 1, y1 - y0 + 1]
        assert box_area(torch.tensor([[x0, y0, x1 + 1, y1 + 1]])).item() >= annotation["area"]
