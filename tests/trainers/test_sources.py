"""Repositories that the network does not give."""

import hashlib
from pathlib import Path

import pytest

from tests.trainers import sources
from tests.trainers.sources import Source

CODE = b"answer = 1\n"
MISSING = Source(
    "owner/trainer",
    "0123456789abcdef",
    {"a/code.py": hashlib.sha256(CODE).hexdigest()},
    made=("a/__init__.py",),
)


def test_a_skip_says_what_to_unpack_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its files are compared, and its packages import nothing more."""
    monkeypatch.setattr(sources, "FOLDER", tmp_path)
    monkeypatch.setattr(sources, "ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(pytest.skip.Exception) as skipped:
        MISSING.fetch()
    folder = tmp_path / "owner-trainer-01234567"
    archive = "https://github.com/owner/trainer/archive/0123456789abcdef.tar.gz"
    assert str(skipped.value).startswith("owner/trainer cannot be fetched, ")
    assert str(skipped.value).endswith(f": unpack {archive} as {folder}")
    (folder / "a").mkdir(parents=True)
    (folder / "a/__init__.py").write_text("import everything")
    (folder / "a/code.py").write_bytes(CODE)
    assert MISSING.fetch() == folder
    assert (folder / "a/__init__.py").read_bytes() == b""
    (folder / "a/code.py").write_bytes(CODE + CODE)
    with pytest.raises(AssertionError, match="is another file"):
        MISSING.fetch()
