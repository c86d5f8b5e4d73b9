"""The dataset that contracts are checked with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.run import run


def make_dataset(folder: Path, scenes: int = 12) -> Path:
    """Return a dataset of synthetic scenes in a new folder, made with the bundled model `demo`.

    One row has an error, one has no regions, and two have ids that are no names of files.
    """
    write_scenes(folder / "scenes", scenes, seed=3)
    captions = folder / "scenes" / "captions.jsonl"
    line, *_ = captions.read_text(encoding="utf-8").splitlines()
    first = json.loads(line)
    image = folder / "scenes" / "images" / first["image"]
    for name in ("nothing.jpg", "ä b?.jpg"):
        shutil.copy(image, image.with_name(name))
    lines = [
        {"image": "none.jpg", "caption": "a red car"},
        {"image": "nothing.jpg", "caption": "so very nice"},
        {**first, "image": "ä b?.jpg", "id": "../../escape"},
        {**first, "id": "/escape/日本"},
    ]
    with captions.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    config = RunConfig.model_validate(
        {
            "input": {
                "kind": "jsonl",
                "path": f"{folder}/scenes/captions.jsonl",
                "image_root": f"{folder}/scenes/images",
            },
            "model": {"name": "demo"},
            "engine": {"kind": "inline"},
            "output": {"path": f"{folder}/dataset", "max_error_share": 1.0},
        }
    )
    run(config, Console(quiet=True))
    return folder / "dataset"
