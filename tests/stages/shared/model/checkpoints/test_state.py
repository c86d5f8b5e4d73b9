import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.contract.errors import WeightsError
from stages.shared.model.checkpoints.state import read_state

STATE = {"visual.proj": torch.arange(6.0).reshape(2, 3), "logit_scale": torch.tensor(2.5)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {f"module.{key}": value for key, value in STATE.items()},
        {"state_dict": {f"module._orig_mod.{key}": value for key, value in STATE.items()}, "name": "run-1"},
    ],
    ids=["bare", "state_dict", "module", "state_dict-module"],
)
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_all_forms(content: Any, form: str, tmp_path: Path) -> None:
    if form == "safetensors":
        save_file(STATE, tmp_path / "a.safetensors")
    else:
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=form == "zip")
    state = read_state(next(tmp_path.iterdir()))
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
    torch.save({**STATE, "evil": _Touch(trace)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Touch(trace)))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", pickle.dumps(_Touch(trace), protocol=2))
        archive.writestr("script/constants.pkl", pickle.dumps(_Touch(trace), protocol=2))
        archive.writestr("script/version", "3\n")
    for name in ("zip.pt", "legacy.pt", "plain.pt", "script.pt"):
        with pytest.raises(WeightsError, match=f"model.weights: .*{name}"):
            read_state(tmp_path / name)
    assert not trace.exists()
    pickle.loads((tmp_path / "plain.pt").read_bytes())
    assert trace.exists(), "the object is harmless: the test shows nothing"


class _RunsWhenLoaded(nn.Module):
    """TorchScript calls `__setstate__` while it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        print("the file's own code runs")
        self.weight = state[0]
        self.training = state[1]


def save_script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), str(path))


def test_torchscript_that_fills_itself_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_script(_RunsWhenLoaded(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt is a TorchScript archive that holds more .*__setstate__.*run code"):
        read_state(tmp_path / "a.pt")
    assert "own code" not in "".join(capfd.readouterr())


class _Scaled(nn.Module):
    """Modules in modules, views of one storage, 16 bits and a number, as archives hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.proj = nn.Parameter(torch.randn(6, 4).T)
        self.short = nn.Parameter(torch.randn(3).half())
        self.register_buffer("row", torch.arange(12).reshape(3, 4)[1])
        self.register_buffer("attn_mask", torch.zeros(2, 2), persistent=False)
        self.vocab_size = 7
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x).mean() + self.proj.sum() + self.row.sum() + self.attn_mask.sum()


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_is_read_without_running_it(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _Scaled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.zeros(1, 3, 4, 4))
        torch.jit.save(archive, str(tmp_path / "a.pt"))
    monkeypatch.setattr(torch.jit, "load", None)
    state = read_state(tmp_path / "a.pt")
    number = state.pop("vocab_size", None)
    assert (None if number is None else int(number)) == (7 if how == "script" else None)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
    assert state["short"].dtype == torch.float16
    assert read_state(tmp_path / "a.pt", numbers=False)["proj"].shape == (4, 6)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"\x80\x02cos\nsystem\n(X\x02\x00\x00\x00lstR.", "it uses os system"),
        (b"\x80\x02cos\nsystem\n)\x81.", "it uses os system"),
        (b"(ios\nsystem\n.", "it uses os system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "it uses builtins eval"),
        (b"\x80\x02ccollections\nOrderedDict\n)R.", "it holds a OrderedDict and no module"),
        (b"\x80\x02c__torch__.a\nA\n)\x81K\x01K\x02\x86b.", "a module in it is filled by code of its own"),
        (b"\x80\x02h\x07.", ""),
        (b"\x80\x02b.", ""),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.", "it has a int where a Tensor"),
    ],
)
def test_torchscript_with_other_instructions_is_refused(instructions: bytes, message: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", instructions)
        archive.writestr("a/constants.pkl", b"")
    with pytest.raises(WeightsError, match=rf"a\.pt is a TorchScript archive that holds more than tensors \({message}"):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize("change", [{"a/data/0": b""}, {"a/data/0": None}, {"a/data.pkl": b"\x80"}], ids=str)
def test_a_damaged_torchscript_archive_is_named(change: dict[str, bytes | None], tmp_path: Path) -> None:
    save_script(nn.Linear(3, 2).eval(), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        content: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for name, value in (content | change).items():
            if value is not None:
                archive.writestr(name, value)
    with pytest.raises(WeightsError, match=r"model.weights: .*b\.pt"):
        read_state(tmp_path / "b.pt")


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"no weights at all", b"PK\3\4 not a zip", half], ids=["empty", "text", "zip", "cut"]
)
def test_a_wrong_file_is_named(name: str, content: bytes | Callable[[bytes], bytes], tmp_path: Path) -> None:
    (save_file if "safe" in name else torch.save)({"a": torch.ones(1000)}, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content(whole))
    with pytest.raises(WeightsError, match=f"model.weights: cannot read .*{name}"):
        read_state(tmp_path / name)


def test_something_else_than_a_state_dict_is_named(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a\.pt holds a list, not a state dict"):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_state_dicts_in_checkpoints_of_trainers(wrapper: str, tmp_path: Path) -> None:
    names = ("module.visual.proj", "model.visual.proj", "visual.proj")
    for number, name in enumerate(names):
        torch.save({wrapper: {name: torch.ones(2)}, "epoch": 3, "optimizer": {}}, tmp_path / f"{number}.pt")
        assert list(read_state(tmp_path / f"{number}.pt")) == ["visual.proj"]
