"""Weights by name: there, verified, or an error that says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages.contract.errors import WeightsError
from stages.model.weights.catalog import CATALOG
from stages.model.weights.resolve import WEIGHTS_ROOT, resolve, sha256_of
from stages.model.weights.resolve import _resolve as resolve_in


def test_the_embedded_model_is_there_and_small() -> None:
    files = resolve("demo")
    assert files.config.name == "model.json"
    folder = files.config.parent
    assert folder == WEIGHTS_ROOT / "demo"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000_000


def test_the_model_card_names_the_checksums() -> None:
    card = (WEIGHTS_ROOT / "demo" / "MODEL_CARD.md").read_text("utf-8")
    assert all(checksum in card for checksum in CATALOG["demo"].files.values())


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightsError, match="expected one of demo, got 'dmeo'"):
        resolve("dmeo")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.json is missing .*reinstall phrasebox"):
        resolve_in("demo", tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS_ROOT / "demo", tmp_path / "demo")
    assert resolve_in("demo", tmp_path / ".").weights.is_file()
    with (tmp_path / "demo" / "model.safetensors").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\x00\x01\x02\x03")
    with pytest.raises(WeightsError, match=r"model\.safetensors is not the file"):
        resolve_in("demo", tmp_path / "demo" / "..")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
