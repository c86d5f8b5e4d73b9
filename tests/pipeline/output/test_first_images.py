"""A run that is stopped while it looks at its first images computes none of them again."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.output.first_images import FirstImage, FirstImages, kept_keys
from phrasebox.pipeline.run import warm_up
from phrasebox.pipeline.run.presence_fit import FEWEST_IMAGES
from phrasebox.pipeline.run.stage_calls import FORWARD_ROWS
from phrasebox.stages.contract.records import HeatMap, ImageRef, Phrase, Record, Sample
from phrasebox.stages.explain.stage import RECORDS_AHEAD
from phrasebox.stages.model.text_cache import TextCache
from phrasebox.stages.regions.stage import RegionsStage
from phrasebox.stages.scores.presence import ImageSignals, TextSignals
from tests.architecture.source import ROOT
from tests.build.datasets import manifest_of
from tests.pipeline.commands.evaluated import called, printed
from tests.pipeline.light import assert_alike, rows_of

COUNT = FEWEST_IMAGES + 2


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that do not grow, however fast this machine is."""
    monkeypatch.setattr(warm_up, "QUICK_S", 0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, COUNT, 5)
    return folder


SETTINGS = {"compare": (), "fit": ("--set", "explain.blocks=1")}
"""With the calibration of the model, and where none holds."""


def command(scenes: Path, out: Path, *more: str) -> list[str]:
    source = [str(scenes / "captions.jsonl"), "--images", str(scenes / "images")]
    return ["run", *source, "--model", "demo", "--engine", "inline", "--out", str(out), *more]


@pytest.fixture(
    scope="module",
    params=[name if name == "compare" else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS],
)
def settings(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def whole(scenes: Path, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    printed(*command(scenes, out, *settings))
    return out


def kept_files(out: Path) -> list[Path]:
    return sorted((out / ".phrasebox" / "first-images").rglob("*.parquet"))


def assert_resumed(out: Path, whole: Path, computed: int) -> None:
    """The dataset equals an undisturbed run's, of whose images the model computed some."""
    assert_alike(rows_of(out), rows_of(whole))
    manifest = manifest_of(out)
    run = manifest["run"]
    for key in ("absent_share", "outside_domain"):
        assert run.get(key) == manifest_of(whole)["run"].get(key), key
    assert manifest["stages"].get("explain", {"images": 0})["images"] == computed
    assert kept_files(out) == []


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Send this process a signal once so many files of first images are kept."""

    def stop(files: int, number: int) -> None:
        add = FirstImages.add

        def add_and_stop(images: FirstImages, batch: Any) -> None:
            add(images, batch)
            nonlocal files
            files -= 1
            if not files:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(FirstImages, "add", add_and_stop)

    return stop


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_computed_before_a_signal_is_not_computed_again(
    number: int,
    code: int,
    stop_after: Any,
    scenes: Path,
    settings: tuple[str, ...],
    whole: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    former = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))
    out = tmp_path / "out"
    stop_after(2, number)
    answer = called(*command(scenes, out, *settings))
    assert (answer[0], rows_of(out)) == (code, [])
    assert answer[2] == (
        f"stopped. 0 finished rows and 16 computed images in {out}; the same command resumes the run.\n"
    )
    printed(*command(scenes, out, *settings))
    assert_resumed(out, whole, COUNT - 16)


def test_small_batches_embed_their_texts_together(
    scenes: Path, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass for the few texts of each batch would take longer than their images."""
    embed_ahead = TextCache.embed_ahead
    calls: list[bool] = []

    def record_call(cache: TextCache, texts: Sequence[str]) -> None:
        calls.append(not {*texts} <= cache._rows.keys() | cache._aside.keys())
        embed_ahead(cache, texts)

    monkeypatch.setattr(TextCache, "embed_ahead", record_call)
    printed(*command(scenes, tmp_path / "out", *settings))
    assert len(calls) == -(-COUNT // FORWARD_ROWS)
    computing = [number for number, is_computing in enumerate(calls) if is_computing]
    assert computing == [*range(0, len(calls), RECORDS_AHEAD // FORWARD_ROWS)]


@pytest.mark.slow
def test_quick_batches_grow(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a stop loses little, large batches cost less."""
    sizes: list[int] = []
    add = FirstImages.add

    def record_size(images: FirstImages, batch: Sequence[FirstImage]) -> None:
        sizes.append(len(batch))
        add(images, batch)

    monkeypatch.setattr(FirstImages, "add", record_size)
    monkeypatch.setattr(warm_up, "QUICK_S", np.inf)
    printed(*command(scenes, tmp_path / "out", *SETTINGS["fit"]))
    assert sizes == [FORWARD_ROWS, 2 * FORWARD_ROWS, COUNT - 3 * FORWARD_ROWS]


def test_what_was_decided_and_is_no_row_yet_is_not_computed_again(
    scenes: Path, settings: tuple[str, ...], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    process = RegionsStage.process
    calls: list[int] = []

    def stop(stage: RegionsStage, batch: Any) -> Any:
        calls.append(len(batch))
        if len(calls) == 1:
            raise KeyboardInterrupt
        return process(stage, batch)

    monkeypatch.setattr(RegionsStage, "process", stop)
    assert called(*command(scenes, out, *settings))[0] == 130
    assert (out / ".phrasebox" / "run.json").exists()
    printed(*command(scenes, out, *settings))
    assert_resumed(out, whole, 0)


@pytest.mark.slow
def test_a_file_that_was_damaged_is_computed_again(
    stop_after: Any, scenes: Path, tmp_path: Path, whole: Path, settings: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    stop_after(3, signal.SIGTERM)
    assert called(*command(scenes, out, *settings))[0] == 143
    kept_files(out)[1].write_bytes(b"PAR1")
    assert len(kept_keys(out / ".phrasebox" / "first-images")) == 16
    printed(*command(scenes, out, *settings))
    assert_resumed(out, whole, COUNT - 16)


def test_fresh_that_is_stopped_leaves_nothing_of_its_first_images(
    stop_after: Any, scenes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    printed(*command(scenes, out, "--limit", "9"))
    before = rows_of(out)
    stop_after(1, signal.SIGTERM)
    code, text, _ = called(*command(scenes, out, "--fresh", "--set", "explain.blocks=2"))
    assert code == 143
    assert "is back" in text
    assert kept_files(out) == []
    assert rows_of(out) == before
    printed(*command(scenes, out, "--limit", "9"))


def image_of(name: str, *captions: str) -> FirstImage:
    rng = np.random.default_rng(len(name))

    def signals(texts: int) -> TextSignals:
        cosines, local = rng.random((2, texts), np.float32)
        embeddings = rng.random((texts, 6), np.float32)
        return TextSignals(embeddings=embeddings, cosines=cosines, local=local)

    sample = Sample(sample_id=name, source=name, captions=captions, image=ImageRef(file_name=f"{name}.jpg"))
    phrase = Phrase(text="cat", caption_index=0, start=0, end=3, head="cat")
    heat_map = HeatMap(text="cat", values=rng.random((3, 4), np.float32), similarity=0.25)
    record = Record(sample=sample, phrases=(phrase,), heat_maps=(heat_map,))
    image = ImageSignals(
        embedding=rng.random(6, np.float32),
        phrases=signals(1),
        foreign=signals(2),
        captions=signals(len(captions)),
    )
    return FirstImage(record=record, signals=image, foreign=("dog", "old boat"))


def test_signals_come_back_bit_by_bit_and_for_the_same_question_only(tmp_path: Path) -> None:
    image = image_of("a", "cat", "a cat")
    FirstImages.of(tmp_path, "fit", "fp32", None).add([image, FirstImage(record=image_of("bb").record)])
    kept = FirstImages.of(tmp_path, "fit", "fp32", None)
    again = kept.find(Record.start(image.record.sample), image.foreign)
    assert again is not None
    assert again.signals is not None
    assert image.signals is not None
    assert np.array_equal(again.record.heat_maps[0].values, image.record.heat_maps[0].values)
    for signals, wanted in (
        (again.signals.phrases, image.signals.phrases),
        (again.signals.foreign, image.signals.foreign),
        (again.signals.captions, image.signals.captions),
    ):
        for name in ("embeddings", "cosines", "local"):
            assert np.array_equal(getattr(signals, name), getattr(wanted, name))
            assert getattr(signals, name).dtype == np.float32
    assert np.array_equal(again.signals.embedding, image.signals.embedding)
    failed = kept.find(Record.start(image_of("bb").record.sample))
    assert failed is not None
    assert failed.signals is None
    assert kept.find(Record.start(image.record.sample), ["dog", "old cow"]) is None
    other_captions = image_of("a", "cat").record.sample
    assert kept.find(Record.start(other_captions), image.foreign) is None
    for steps in (("compare", "fp32", None), ("fit", "bf16", None), ("fit", "fp32", "0a")):
        kept = FirstImages.of(tmp_path, *steps)
        assert kept.find(Record.start(image.record.sample), image.foreign) is None


def test_a_file_of_another_form_does_not_count_and_stays(tmp_path: Path) -> None:
    """Before, all texts of an image stood one behind the other."""
    image = image_of("a", "cat")
    parsed = Record.start(image.record.sample)
    FirstImages.of(tmp_path, "fit").add([image])
    (path,) = tmp_path.rglob("*.parquet")
    table = pq.read_table(path)
    numbers = pa.list_(pa.float32())
    names = ("embedding", "texts", "cosines", "local")
    former = pa.array([{name: [1.0] for name in names}], pa.struct([(name, numbers) for name in names]))
    place = table.schema.get_field_index("signals")
    pq.write_table(table.set_column(place, "signals", former), path)
    kept = FirstImages.of(tmp_path, "fit")
    assert kept.find(parsed, image.foreign) is None
    kept.add([image])
    assert len([*tmp_path.rglob("*.parquet")]) == 2
    assert FirstImages.of(tmp_path, "fit").find(parsed, image.foreign) is not None
    assert len(kept_keys(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inline", pytest.param("ray", marks=pytest.mark.ray)])
def test_a_process_that_is_stopped_at_its_first_images(engine: str, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = [sys.executable, "-c", "from phrasebox.pipeline.commands.cli import main; main()"]
    arguments = [*program, *command(scenes, out, "--set", "model.batch_size=4", "--engine", engine)]
    with subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not kept_files(out) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=300)
    kept = sum(pq.read_metadata(path).num_rows for path in kept_files(out))
    assert process.returncode == 143
    assert f"0 finished rows and {kept} computed images" in err
    subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
    assert manifest_of(out)["stages"]["explain"]["images"] == COUNT - kept
    shutil.rmtree(out)
