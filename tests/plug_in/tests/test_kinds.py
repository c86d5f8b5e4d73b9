"""The kinds keep what phrasebox expects of them."""

import json
from pathlib import Path

from phrasebox_bright.explainer import Bright
from phrasebox_bright.exporter import BoxLines
from phrasebox_bright.reader import BarsReader
from phrasebox_bright.recipe import Near
from phrasebox_bright.source import Middle

from phrasebox.testing import check_explainer, check_exporter, check_reader, check_recipe, check_source


def test_explainer() -> None:
    check_explainer(Bright, is_blind=True)


def test_source() -> None:
    check_source(Middle)


def test_reader(tmp_path: Path) -> None:
    lines = [f"photos/{number}.jpg|a red car" for number in range(9)]
    (tmp_path / "some.bars").write_text("\n".join([*lines, "no bar"]))
    check_reader(BarsReader, {"path": str(tmp_path)}, rows=10)


def test_exporter() -> None:
    def read_boxes(folder: Path, split: str) -> list[list[list[float]]]:
        lines = (folder / f"{split}.jsonl").read_text().splitlines()
        return [json.loads(line)["boxes"] for line in lines]

    check_exporter(BoxLines, read_boxes)


def test_recipe() -> None:
    check_recipe(Near)
