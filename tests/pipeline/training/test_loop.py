"""Training end to end, small: it learns, stops, goes on, and exports what stock open_clip loads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.training.__main__ import main
from pipeline.training.config import Phase, TrainConfig
from pipeline.training.export import export, renew_checksums
from pipeline.training.loop import LATEST_FILE, LOG_FILE, earlier_training, train
from pipeline.training.model import encode_image
from stages.shared.model.catalog import sha256_of
from stages.shared.model.device import PRECISIONS

CONFIG = TrainConfig(
    batch=12,
    warmup_steps=2,
    evaluation_scenes=4,
    phases=(
        Phase(name="crops", steps=4, side_px=70, max_objects=1, min_size_rel=0.6, max_size_rel=0.95),
        Phase(name="scenes", steps=2, side_px=80, render_scale=1.5, patch_dropout=0.5, lr_end=0.5),
    ),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train")
    train(CONFIG, out, workers=0, checkpoint_every_s=0)
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / LOG_FILE).read_text("utf-8").splitlines()]


def test_the_log_tells_every_phase(run: Path) -> None:
    log = lines(run)
    assert [line["phase"] for line in log] == ["crops", "scenes"]
    assert [line["step"] for line in log] == [4, 6]
    for line in log:
        assert 0 < line["caption_loss"] < 8
        assert 0 < line["bank_loss"] < 8
        assert 0 <= line["top1"] <= 1


def test_training_goes_on_from_a_checkpoint(run: Path, tmp_path: Path) -> None:
    longer = CONFIG.model_copy(update={"phases": (CONFIG.phases[0], CONFIG.phases[1].model_copy(update={"steps": 3}))})
    train(longer, tmp_path, workers=0, checkpoint_every_s=0, resume=run / LATEST_FILE)
    assert [line["step"] for line in lines(tmp_path)] == [7]
    before = torch.load(run / LATEST_FILE, weights_only=True)
    after = torch.load(tmp_path / LATEST_FILE, weights_only=True)
    assert after["step"] == before["step"] + 1
    assert not torch.equal(before["model"]["visual.proj"], after["model"]["visual.proj"])


@pytest.mark.slow
def test_training_goes_on_from_exported_weights(run: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    export(run / LATEST_FILE, weights, side_px=90, evaluation_scenes=2)
    still = Phase(name="still", steps=1, side_px=90, lr_start=0.0, lr_end=0.0)
    config = CONFIG.model_copy(update={"seed": 7, "phases": (still,)})
    train(config, tmp_path / "out", workers=0, checkpoint_every_s=0, from_weights=weights)
    saved = torch.load(tmp_path / "out" / LATEST_FILE, weights_only=True)
    began = load_file(weights / "model.safetensors")
    for part in ("model", "average"):
        for name, value in saved[part].items():
            # Muon without a learning rate changes nothing; the average is taken from equal weights.
            assert torch.allclose(value, began[name].float(), atol=1e-6), (part, name)
    assert (saved["step"], [line["step"] for line in saved["log"]]) == (1, [1])

    checksum = sha256_of(weights / "model.safetensors")
    export(tmp_path / "out" / LATEST_FILE, tmp_path / "again", evaluation_scenes=2)
    card = (tmp_path / "again" / "MODEL_CARD.md").read_text("utf-8")
    first, _, before = card.partition("## Before that")
    assert "--from-weights FOLDER" in first
    assert "| still | 1 |" in first
    assert checksum in before
    assert "| crops | 4 |" in before
    assert "| scenes | 6 |" in before
    longer = config.model_copy(update={"phases": (still.model_copy(update={"steps": 2}),)})
    train(longer, tmp_path / "more", workers=0, checkpoint_every_s=0, resume=tmp_path / "out" / LATEST_FILE)
    assert torch.load(tmp_path / "more" / LATEST_FILE, weights_only=True)["earlier"] == saved["earlier"]


def test_what_cannot_be_gone_on_from_is_refused(run: Path, tmp_path: Path) -> None:
    export(run / LATEST_FILE, tmp_path, evaluation_scenes=2)
    with pytest.raises(ValueError, match="got both"):
        train(CONFIG, tmp_path / "out", workers=0, resume=run / LATEST_FILE, from_weights=tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual.proj"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)architecture of MODEL_CFG.*visual\.proj"):
        train(CONFIG, tmp_path / "out", workers=0, from_weights=tmp_path)
    with pytest.raises(ValueError, match="section '## Training'"):
        earlier_training("# A card of something else", "0" * 64)
    (tmp_path / "bpe_vocab.txt.gz").write_bytes(gzip.compress(b"#version: 0.2\nr e\nr e d</w>\n"))
    with pytest.raises(ValueError, match="got another one"):
        train(CONFIG, tmp_path / "out", workers=0, from_weights=tmp_path)


@pytest.mark.parametrize(("instructions", "precision"), [({}, "fp32"), ({"avx512_bf16": True}, "bf16")])
def test_the_processor_decides_the_precision_and_the_card_says_it(
    instructions: dict[str, bool], precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    seen = set()

    def watched(*args: Any, **options: Any) -> Tensor:
        out = encode_image(*args, **options)
        if torch.is_grad_enabled():  # evaluation computes in fp32
            seen.add(out.dtype)
        return out

    monkeypatch.setattr("pipeline.training.loop.encode_image", watched)
    phase = CONFIG.phases[0].model_copy(update={"steps": 1})
    config = CONFIG.model_copy(update={"batch": 2, "evaluation_scenes": 1, "phases": (phase,)})
    latest = train(config, tmp_path, workers=0, checkpoint_every_s=0)
    assert seen == {PRECISIONS[precision]}
    assert [line["precision"] for line in lines(tmp_path)] == [precision]
    export(latest, tmp_path / "weights", evaluation_scenes=1)
    card = (tmp_path / "weights" / "MODEL_CARD.md").read_text("utf-8")
    assert f"torch {torch.__version__}, {precision}." in card


@pytest.mark.slow
def test_the_same_seed_learns_the_same(tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"phases": (CONFIG.phases[0].model_copy(update={"steps": 2}),)})
    states = []
    for name in ("a", "b"):
        train(short, tmp_path / name, workers=0, checkpoint_every_s=0)
        states.append(torch.load(tmp_path / name / LATEST_FILE, weights_only=True)["model"])
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], atol=1e-4), key


def test_the_export_loads_in_stock_open_clip(run: Path, tmp_path: Path) -> None:
    checksums = export(run / LATEST_FILE, tmp_path, evaluation_scenes=4)
    assert set(checksums) == {"model.json", "model.safetensors", "bpe_vocab.txt.gz"}
    assert all(sha256_of(tmp_path / name) == checksum for name, checksum in checksums.items())
    card = (tmp_path / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in checksums.values())
    assert "Nothing is claimed for photographs" in card

    settings = json.loads((tmp_path / "model.json").read_text("utf-8"))["model_cfg"]
    model = open_clip.CLIP(**settings).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    context = settings["text_cfg"]["context_length"]
    tokenizer = SimpleTokenizer(bpe_path=str(tmp_path / "bpe_vocab.txt.gz"), context_length=context)
    with torch.no_grad():
        images = model.encode_image(torch.zeros(1, 3, 80, 80))
        texts = model.encode_text(tokenizer(["a red car"]))
    assert images.shape == texts.shape == (1, 192)
    assert torch.isfinite(images).all()


def test_a_finer_grid_can_be_exported(run: Path, tmp_path: Path) -> None:
    export(run / LATEST_FILE, tmp_path, side_px=120, evaluation_scenes=2)
    settings = json.loads((tmp_path / "model.json").read_text("utf-8"))
    assert settings["model_cfg"]["vision_cfg"]["image_size"] == settings["preprocess_cfg"]["size"] == 120
    model = open_clip.CLIP(**settings["model_cfg"])
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))


@pytest.mark.slow
def test_the_smoke_run_runs(tmp_path: Path) -> None:
    assert main(["run", str(tmp_path / "run"), "--smoke", "--threads", "1"]) == 0
    assert [line["phase"] for line in lines(tmp_path / "run")] == ["crops", "scenes"]
    assert (tmp_path / "run" / LATEST_FILE).is_file()


def test_a_configuration_file_is_read(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"phasen": []}')
    with pytest.raises(ValueError, match="phasen"):
        main(["run", str(tmp_path / "out"), "--config", str(config)])


def test_checksums_are_put_into_the_catalog(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.py"

    def source(of_one: str, of_two: str) -> str:
        entries = (
            f'    "{name}": WeightsEntry(\n        files={{"a.bin": "{digit * 64}"}},\n    ),\n'
            for name, digit in (("one", of_one), ("two", of_two))
        )
        return f"CATALOG = {{\n{''.join(entries)}}}\n"

    catalog.write_text(source("0", "1"))
    renew_checksums(catalog, {"a.bin": "f" * 64}, entry="two")
    assert catalog.read_text() == source("0", "f")
    with pytest.raises(ValueError, match=r"c\.bin with a checksum once in 'two'"):
        renew_checksums(catalog, {"c.bin": "f" * 64}, entry="two")
    with pytest.raises(ValueError, match="once in 'three'"):
        renew_checksums(catalog, {"a.bin": "f" * 64}, entry="three")


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="batches"):
        TrainConfig.model_validate({"batches": 3})
