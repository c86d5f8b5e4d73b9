import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.model.checkpoints.state import read_state
from tests.messages import expect_error

STATE = {"visual.proj": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(2.5)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {f"module.{key}": value for key, value in STATE.items()},
        {"state_dict": {f"module._orig_mod.{key}": value for key, value in STATE.items()}, "name": "run-1"},
        {"model_state_dict": {f"model.{key}": value for key, value in STATE.items()}, "optimizer": {}},
        {"model": STATE},
    ],
    ids=["bare", "state_dict", "module", "state_dict-module", "model_state_dict-model", "model"],
)
def test_all_forms(content: Any, tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save(content, tmp_path / "zip.pt")
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        state = read_state(path)
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[key], STATE[key]) for key in STATE)


class _Touch:
    """Unpickling this object creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    torch.save({**STATE, "evil": _Touch(trace)}, tmp_path / "zip.pt")
    torch.save(
        {**STATE, "evil": _Touch(trace)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False
    )
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Touch(trace)))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps(_Touch(trace), protocol=2))
        archive.writestr("script/constants.pkl", pickle.dumps(_Touch(trace), protocol=2))
        archive.writestr("script/version", "3\n")
    for name in ("zip.pt", "legacy.pt", "plain.pt", "script.pt"):
        with expect_error(WeightsError):
            read_state(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert trace.exists(), "the object is harmless: the test shows nothing"


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"no weights at all", b"PK\3\4 not a zip", half], ids=["empty", "text", "zip", "cut"]
)
def test_a_wrong_file_is_named(
    name: str, content: bytes | Callable[[bytes], bytes], tmp_path: Path
) -> None:
    (save_file if "safe" in name else torch.save)({"a": torch.ones(1000)}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content(whole))
    with expect_error(WeightsError):
        read_state(tmp_path / name)


def test_something_else_than_a_state_dict_is_named(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "a.pt")
    with expect_error(WeightsError):
        read_state(tmp_path / "a.pt")
