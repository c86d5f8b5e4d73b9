"""Whether a dataset was made by who looks at it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from pipeline.output.origin import is_own, signed

CONFIG = {"input": {"image_root": "/photos"}, "rate": 0.1}
RUN = {"config": CONFIG, "model_fingerprint": "demo:1", "counts": {"read": 1}}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "phrasebox"


def test_what_was_signed_is_known_again_and_a_change_is_seen(state: Path) -> None:
    run = signed(RUN)
    assert is_own(run)
    assert is_own({**run, "counts": {}, "phrasebox_version": "2"}), "only what is followed counts"
    assert not is_own({**run, "config": {**CONFIG, "rate": 0.2}})
    assert not is_own({**run, "model_fingerprint": "demo:2"})
    assert not any(is_own({**RUN, "signature": wrong}) for wrong in (None, "", "é", 1, ["x"], "0" * 64))
    assert not is_own(RUN)
    assert stat.S_IMODE((state / "key").stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["key"]


def test_another_user_has_another_key(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = signed(RUN)
    monkeypatch.setenv("XDG_STATE_HOME", str(state / "other"))
    assert not is_own(run)
    assert signed(RUN)["signature"] != run["signature"]


def test_where_no_key_can_be_kept_nothing_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    run = signed(RUN)
    assert run["signature"] is None
    assert not is_own(run)


def test_a_damaged_key_signs_nothing(state: Path) -> None:
    state.mkdir(parents=True)
    (state / "key").write_bytes(b"")
    assert signed(RUN)["signature"] is None
