"""The command line: its verbs, what they print and write, and how they fail."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from phrasebox.pipeline import __version__
from phrasebox.pipeline.commands import cli
from phrasebox.pipeline.commands.cli import VERBS
from phrasebox.pipeline.commands.options import OPTIONS
from phrasebox.pipeline.commands.phrases import phrases_json
from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.selection import REGION_COLUMNS
from phrasebox.stages.phrases.config import PhrasesConfig
from tests.build.datasets import manifest_of
from tests.build.files import write_json
from tests.messages import assert_message
from tests.pipeline.commands.evaluated import called as phrasebox
from tests.pipeline.commands.evaluated import printed

DEMO = ("--model", "demo")


def assert_refused(answer: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, nothing on standard output, the message on standard error."""
    code, out, err = answer
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def assert_refused_in_one_line(answer: tuple[int, str, str]) -> None:
    code, out, err = answer
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert_message(err)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb: str) -> None:
    code, out, err = phrasebox(verb, "--help")
    assert (code, err) == (0, "")
    assert f"phrasebox {verb}" in out


def test_help_lists_the_verbs_and_is_what_no_arguments_give() -> None:
    for _, out, err in (phrasebox("--help"), phrasebox()):
        assert all(f"  {verb} " in out + err for verb in VERBS)
    assert phrasebox("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_numpy_has_one_thread_unless_told_otherwise(
    given: dict[str, str], threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(os, "environ", given)
    cli.main()
    assert given == {"OPENBLAS_NUM_THREADS": threads}


def test_as_a_program(tmp_path: Path) -> None:
    """An error is one line and exit code 2, also in a process of its own."""
    command = [Path(sys.executable).parent / "phrasebox", "validate", "none"]  # which needs no torch
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: no such folder: none\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["rnu"], ["run", "--frsh"], ["explain", "a.jpg"], ["scenes"], ["validate"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert_refused(phrasebox(*arguments), "Usage: ", "Error: ")


def test_options_go_over_the_file_and_set_over_both(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "input: {kind: jsonl, path: a.jsonl}\nmodel: {name: demo}\noutput: {path: a}\n"
    )
    given = ("--config", tmp_path / "my.yaml", "--model", "ViT-B-16/openai", "--out", "b")
    command = ("run", "b.jsonl", *given)
    out = printed(*command, "--set", "output.path=c", "--print-config")
    values = yaml.safe_load(out)
    assert (values["input"]["path"], values["output"]["path"]) == ("b.jsonl", "c")
    assert (values["model"]["name"], values["model"]["pretrained"]) == ("ViT-B-16", "openai")
    (tmp_path / "again.yaml").write_text(out)
    assert printed("run", tmp_path / "again.yaml", "--print-config") == out


def test_errors_name_what_was_typed(tmp_path: Path) -> None:
    given = ["run", "a.jsonl", "--set", "input.kind=jsonl"]
    assert_refused_in_one_line(phrasebox(*given, "--engine", "rai"))
    missing = ["run", tmp_path / "none.jsonl", *DEMO, *given[2:], "--engine", "inline"]
    assert_refused_in_one_line(phrasebox(*missing))
    for name in (
        "input.path",
        "model.weights",
        "output.path=2",
    ):  # keys in a path of the user stay as they are
        file = tmp_path / name / "a.jsonl"
        told = phrasebox("run", file, *DEMO, "--out", tmp_path / "out")
        assert told == (2, "", f"error: INPUT: no such file or folder: {file}\n")
    assert_refused_in_one_line(phrasebox(*given, "--set", "output.path="))
    (tmp_path / "my.yaml").write_text("input: {kind: jsonl, path: a.jsonl}\nengine: {kind: rai}\n")
    assert_refused_in_one_line(phrasebox("run", tmp_path / "my.yaml"))
    both = ["run", tmp_path / "my.yaml", "--config", tmp_path / "my.yaml"]
    assert_refused_in_one_line(phrasebox(*both))


def test_run_validate_and_run_again(scenes_folder: Path, tmp_path: Path) -> None:
    """With a folder whose name looks like markup."""
    out_folder = tmp_path / "[red] out"
    lines = (scenes_folder / "captions.jsonl").read_text().splitlines()
    (tmp_path / "few.jsonl").write_text("\n".join(lines[:3]))
    source = {"kind": "jsonl", "path": f"{tmp_path}/few.jsonl", "image_root": f"{scenes_folder}/images"}
    values = {"input": source, "engine": {"kind": "inline"}, "model": {"name": "demo"}}
    write_json(tmp_path / "config.yaml", values)
    command = ["run", tmp_path / "config.yaml", "--set", f"output.path='{out_folder}'"]
    code, out, err = phrasebox(*command)
    assert (code, err) == (0, "")
    assert f"dataset in {out_folder}" in out
    assert phrasebox("validate", out_folder) == (0, f"{out_folder}: valid\n", "")
    code, out, _ = phrasebox(*command)
    assert (code, out) == (0, f"{out_folder} is complete: nothing to do. --fresh starts over.\n")
    code, out, err = phrasebox(*command, "--set", "explain.blocks=1")
    assert (code, out) == (2, "")
    assert "  explain.blocks: 4 there, 1 now\n" in err
    (out_folder / "data/mine.parquet").write_text("mine")
    told = f"error: --fresh would delete files in {out_folder} that phrasebox did not write (data/mine.parquet): "
    answer = phrasebox(*command, "--set", "explain.blocks=1", "--fresh")
    assert answer == (2, "", f"{told}move them away, or add --yes. Nothing was deleted\n")
    printed(*command, "--set", "explain.blocks=1", "--fresh", "--yes")
    assert not (out_folder / "data/mine.parquet").exists()


def test_fresh_asks_at_a_terminal(tmp_path: Path) -> None:
    """Where there are rows; the two here are errors, which need no model."""
    (tmp_path / "none.jsonl").write_text("{\n{\n")
    out = tmp_path / "out"
    command = ("run", tmp_path / "none.jsonl", "--images", tmp_path, *DEMO, "--out", out)
    assert phrasebox(*command, "--fresh", typed="n\n")[0] == 1, (
        "there is nothing to lose, and every row failed"
    )
    code, shown, err = phrasebox(*command, "--fresh", typed="n\n")
    assert f"{out} holds a finished dataset with 2 rows. Delete it and start over? [y/N]" in shown
    assert (code, err) == (2, f"error: {out} stays as it is: nothing was deleted\n")
    again = "Rows with an error: 2; delete their shards to have them done again."
    assert phrasebox(*command)[1] == f"{out} is complete: nothing to do. --fresh starts over. {again}\n"
    mine = out / "data/mine.parquet"
    mine.write_text("mine")
    code, shown, _ = phrasebox(*command, "--fresh", typed="y\n")
    assert f"phrasebox did not write these files:\n  {mine}\n" in shown
    assert "Delete it and these files and start over? [y/N]" in shown
    assert (code, mine.exists()) == (1, False), shown
    assert f"dataset in {out}" in shown


def test_a_dataset_with_faults(inline_dataset: Path, tmp_path: Path) -> None:
    dataset = Path(shutil.copytree(inline_dataset, tmp_path / "dataset"))
    (dataset / "data" / "00001.parquet").unlink()
    code, out, err = phrasebox("validate", dataset)
    assert code == 1
    assert f"{dataset}/dataset.json: counts.read is 12 but the shards hold 7\n" in out
    assert err == f"{len(out.splitlines())} problems in {dataset}\n"


EXPLAIN = "explain --model demo"

ERRORS = [
    "run none.yaml",
    "run --model demo --set 'input={kind: jsonl, path: none.jsonl}' --set engine.kind=inline",
    "run --model demo --set 'input={kind: jsonl, path: a.jsonl}' --set output.path=s3://b/out",
    "run --config a.jsonl",
    "run --config text.jpg",
    "run --set 'input={kind: jsonl, path: a}' --max-error-share 10%",
    "phrases none.txt",
    "phrases - --set max_phrase=3",
    "phrases - --set spacy_models.en=xx_none",
    f"{EXPLAIN} none.jpg --phrase dog --out a.npz",
    f"{EXPLAIN} text.jpg --phrase dog --out a.npz",
    f"{EXPLAIN} text.jpg --phrase ' ' --out a.npz",
    f"{EXPLAIN} text.jpg --phrase dog --out text.jpg/a.npz",
    f"{EXPLAIN} text.jpg --phrase dog --out a.npz --overlay a.doc",
    f"{EXPLAIN} red.png --phrase dog --out a.npz --set explain.blocks=99",
    "explain red.png --phrase dog --out a.npz --model ViT-B-17/openai",
    "stats nonsense://bucket/out",
    "validate text.jpg",
    "scenes --out text.jpg",
    "export DATASET --format odvg --set segmentation=rle --out out",
    "export DATASET --format coco --where head=dog --out out",
    "export DATASET --format yolo --images none --out out",
    "inspect DATASET --host none.invalid",
    "inspect DATASET --review --where 'w > 9'",
    "inspect DATASET --answers 9 --keep 0.3",
]


@pytest.mark.parametrize("command", ERRORS)
def test_errors_are_one_line(command: str, inline_dataset: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg"}\n' * 2)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert_refused_in_one_line(phrasebox(*shlex.split(command.replace("DATASET", str(inline_dataset)))))
    assert {path.name for path in tmp_path.iterdir()} <= {"text.jpg", "a.jsonl", "red.png", "out"}, (
        "nothing half done"
    )


def test_the_columns_of_conditions_are_in_the_help() -> None:
    for verb in ("stats", "inspect", "export"):
        _, out, _ = phrasebox(verb, "--help")
        told = out.partition("--where SQL")[2].partition("--")[0].partition("Columns: ")[2]
        words = set(told.replace(",", " ").replace(".", " ").split())
        assert words == {*REGION_COLUMNS.names, "and", "in", "pixels"}


@pytest.mark.parametrize(
    ("lines", "code", "words"),
    [
        (
            ['{"image": "bad.jpg", "caption": "a dog"}', '{"image": "good.png", "caption": "a dog"}'],
            0,
            "error_detail",
        ),
        (
            ["{broken", "", "{broken", '{"image": "bad.jpg", "caption": "a dog"}'],
            1,
            "`error_detail` say what is wrong\n",
        ),
        ([], 0, "the input holds no samples"),
    ],
)
def test_a_run_says_what_failed_and_fails_where_every_row_did(lines, code, words, tmp_path) -> None:
    (tmp_path / "bad.jpg").write_text("not an image")
    Image.new("RGB", (40, 40)).save(tmp_path / "good.png")
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    exit_code, out, err = phrasebox("run", tmp_path / "a.jsonl", *DEMO, "--out", tmp_path / "out")
    assert exit_code == code
    assert words in out + err
    assert err == "" if code == 0 else err.endswith(words)
    assert phrasebox("validate", tmp_path / "out")[0] == 0


def test_a_run_without_a_model_says_which_ones_there_are(
    scenes_folder: Path, image: Path, tmp_path: Path
) -> None:
    """`demo` knows synthetic scenes only, so it is never what nobody asked for."""
    captions = scenes_folder / "captions.jsonl"
    images = scenes_folder / "images"
    given = [captions, "--images", images]
    for command in (
        ["run", *given, "--out", tmp_path / "out"],
        ["plan", *given],
        ["explain", image, "--phrase", "dog"],
    ):
        assert_refused(
            phrasebox(*command), "no model is given", "\n  photo ", "ViT-B-16/laion2b_s34b_b88k", "my-clip/"
        )
    assert not (tmp_path / "out").exists()


def test_a_run_as_a_person_types_it(scenes_folder: Path, tmp_path: Path) -> None:
    """Each option sets the one key that its help names; the run names the model first, and last what to do next."""
    out = tmp_path / "my out"
    captions = scenes_folder / "captions.jsonl"
    images = scenes_folder / "images"
    code, told, err = phrasebox("run", captions, "--images", images, *DEMO, "--out", out, "--limit", 2)
    assert (code, err) == (0, "")
    lines = told.splitlines()
    config = manifest_of(out)["config"]
    precision = config["model"]["precision"]
    assert lines[0] == (
        f"model: demo in {precision}, with its own settings where none are given (--print-config shows them); "
        "engine: one process"
    )
    assert lines[-2:] == [
        f"Look at it:  phrasebox inspect '{out}'",
        f"Export it:   phrasebox export '{out}' --format coco --out coco/ --precision 0.8",
    ]
    scores = open_dataset(out).regions("", ["score"], precision=0.8)["score"].to_pylist()
    assert re.search(rf"0\.8 │ +{min(scores):.3f} │ +{len(scores)} \(\d+%\) │", told)
    values = {**config["input"], **config["model"]}
    given = {"path": str(captions), "image_root": str(images), "limit": 2, "name": "demo"}
    assert given.items() <= values.items()
    shown = printed("run", "--help", columns=1000)
    assert all(f"({key})" in shown for key in OPTIONS if "." in key)


CAPTIONS = ["A red car next to two dogs.", "", "beautiful!", "a photo of the big  house — ein Zwölf"]


def test_phrases_of_standard_input() -> None:
    out = printed("phrases", "-", stdin="\n".join(CAPTIONS).encode() + b"\n")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == list(phrases_json(CAPTIONS, PhrasesConfig()))
    assert [row["caption"] for row in rows] == CAPTIONS
    assert [phrase["text"] for phrase in rows[0]["phrases"]] == ["red car", "two dogs"]
    out = printed("phrases", "-", "--set", "max_phrases=1", stdin=CAPTIONS[0].encode())
    assert [phrase["text"] for phrase in json.loads(out)["phrases"]] == ["red car"]
    code, _, err = phrasebox("phrases", "-", stdin=b"\xff\xfe")
    assert (code, err.startswith("error: - is not UTF-8: ")) == (2, True)


def test_phrases_of_a_file(tmp_path: Path) -> None:
    """Also one of Windows, with a byte order mark; a lone carriage return ends no line."""
    (tmp_path / "captions.txt").write_bytes(b"\xef\xbb\xbfA red car\r\ntwo\rdogs\r\n")
    lines = printed("phrases", tmp_path / "captions.txt").splitlines()
    assert [json.loads(line)["caption"] for line in lines] == ["A red car", "two\rdogs"]


@pytest.fixture(scope="module")
def image(scenes_folder: Path) -> Path:
    return scenes_folder / "images" / "000000.jpg"


def test_explain(image: Path, tmp_path: Path) -> None:
    out_file = tmp_path / "new" / "maps.npz"
    overlay = tmp_path / "also new" / "maps.png"
    phrases = ["red car", "[blue] bird", "red  car", "a house"]
    options = [part for phrase in phrases for part in ("--phrase", phrase)]
    out = printed("explain", *DEMO, image, *options, "--out", out_file, "--overlay", overlay)
    for words in (f"maps in {out_file}", f"picture in {overlay}", "[blue] bird"):
        assert words in out
    with np.load(out_file) as file:
        arrays = dict(file)
    assert arrays.keys() == {"maps", "scores", "phrases"}
    assert arrays["phrases"].tolist() == ["red car", "[blue] bird", "a house"], "each once"
    count, rows, columns = arrays["maps"].shape
    assert (count, rows) == (3, columns)
    assert arrays["maps"].dtype == arrays["scores"].dtype == np.float32
    assert (arrays["maps"] >= 0).all()
    assert (np.abs(arrays["scores"]) <= 1).all()
    with Image.open(overlay) as picture:
        assert picture.width == 3 * 360


def test_explain_embeds_texts_as_typed_with_the_settings_of_the_authors(
    image: Path, tmp_path: Path
) -> None:
    out_file = tmp_path / "maps.npz"
    command = ["explain", *DEMO, image, "--phrase", "a red car", "--phrase", "red car", "--out", out_file]
    is_same = []
    for settings in ([], ["--set", "explain.variant=authors"]):
        printed(*command, *settings)
        with np.load(out_file) as file:
            is_same.append(file["scores"][0] == file["scores"][1])
    assert is_same == [True, False]


def test_scenes(tmp_path: Path) -> None:
    code, out, _ = phrasebox("scenes", "--out", tmp_path / "[b]", "--scenes", 2, "--seed", 9)
    assert (code, out) == (0, f"2 scenes in {tmp_path / '[b]'}: images/, captions.jsonl, truth.json\n")
    assert len(list((tmp_path / "[b]" / "images").iterdir())) == 2
    for setting in (["--scenes", "0"], ["--seed", "-1"], ["--scenes", "many"]):
        assert_refused(phrasebox("scenes", "--out", tmp_path, *setting), "Error: Invalid value for")


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Verbs, "__init__", interrupt)
    assert phrasebox("--version") == (130, "", "")
