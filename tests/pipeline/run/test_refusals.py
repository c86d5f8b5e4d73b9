"""What a run refuses as a whole, what that leaves behind, and how many failed rows it may end with."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.build.datasets import manifest_of
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import called as phrasebox

REFUSED: dict[str, tuple[str, str, bytes | None]] = {
    "missing": ("jsonl", "a.jsonl", None),
    "empty path": ("jsonl", "", None),
    "NUL": ("jsonl", "a\\0b.jsonl", None),
    "csv not gzip": ("csv", "a.csv.gz", b"image,caption\n"),
    "csv that is binary": ("csv", "a.csv", bytes(range(256))),
    "COCO too deep": ("coco_captions", "a.json", b"[" * 100_000),
}
"""Name -> kind of input, its path, and the bytes of that file if there is one."""


def test_a_refused_run_can_be_mended(tmp_path: Path) -> None:
    """The images were not in the folder of the captions; with some of them the run is made."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "1.jpg").write_text("not an image")
    lines = [json.dumps({"image": f"{number}.jpg", "caption": "a red cup"}) for number in range(3)]
    (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    out = tmp_path / "out"
    command = ["run", tmp_path / "captions.jsonl", "--model", "demo", "--engine", "inline", "--out", out]
    code, _, err = phrasebox(*command)
    assert code == 2
    assert_message(err)
    assert not out.exists()
    code, _, err = phrasebox(*command, "--images", pictures)
    assert code == 1
    assert_message(err)  # no row is of use
    reasons = pq.read_table(out / "data")["error"].to_pylist()
    assert sorted(reasons) == ["bad_image", "missing_image", "missing_image"]


@pytest.mark.parametrize("name", REFUSED)
def test_an_input_that_is_refused(name: str, tmp_path: Path) -> None:
    kind, file, content = REFUSED[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    path = file if file.startswith("/") or "://" in file or not file else f"{tmp_path}/{file}"
    arguments = [
        "--set",
        f"input.kind={kind}",
        "--set",
        f'input.path="{path}"',
        "--set",
        "engine.kind=inline",
    ]
    code, out, err = phrasebox("run", "--model", "demo", *arguments, "--set", f"output.path={tmp_path}/out")
    assert (code, out) == (2, "")
    assert_message(err)
    assert not (tmp_path / "out").exists()


def test_names_of_files_cannot_steer_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J\x07.csv").write_text("x,y\n")
    code, _, err = phrasebox(
        "run",
        "--model",
        "demo",
        "--set",
        f"input={{kind: csv, path: '{tmp_path}'}}",
        "--set",
        "engine.kind=inline",
    )
    assert code == 2
    assert r"a\x1b[2J\x07.csv" in err
    assert err.replace("\n", "").isprintable()


@pytest.fixture
def half_bad(scenes_folder: Path, tmp_path: Path) -> list[object]:
    """Arguments of a run over four rows of which two fail."""
    lines = (scenes_folder / "captions.jsonl").read_text().splitlines()[:2]
    lines += ["{broken", json.dumps({"image": "none.jpg", "caption": "a cat"})]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    source = tmp_path / "rows.jsonl"
    images = scenes_folder / "images"
    out = tmp_path / "out"
    return ["run", source, "--images", images, "--model", "demo", "--engine", "inline", "--out", out]


def test_too_many_failed_rows(half_bad: list[object], tmp_path: Path) -> None:
    """The dataset is complete, and the same command says the same again."""
    code, out, err = phrasebox(*half_bad, "--max-error-share", "0.49")
    assert code == 1
    assert_message(err)
    assert f"dataset in {tmp_path}/out" in out
    assert phrasebox("validate", tmp_path / "out")[0] == 0
    assert manifest_of(tmp_path / "out")["config"]["output"]["max_error_share"] == 0.49
    code, out, err = phrasebox(*half_bad, "--set", "output.max_error_share=0.49")
    assert code == 1
    assert_message(err)
    assert "nothing to do" in out
    assert phrasebox(*half_bad, "--max-error-share", "0")[0] == 1
