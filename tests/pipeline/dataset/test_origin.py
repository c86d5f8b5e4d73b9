"""Whether a dataset was made by who looks at it."""

import stat
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from phrasebox.pipeline.config.paths import LOCATIONS
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.dataset.folder import Dataset
from phrasebox.pipeline.dataset.origin import LOADED_KEYS, check_named, find_unnamed
from phrasebox.pipeline.dataset.signature import is_own, sign
from phrasebox.stages.contract.errors import ConfigError
from tests.build.cases import cases
from tests.build.datasets import Json
from tests.messages import expect_error

CONFIG = {"input": {"image_root": "/photos"}, "rate": 0.1}
RUN = {"config": CONFIG, "model_fingerprint": "demo:1", "counts": {"read": 1}}


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a key."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "phrasebox"


def test_what_was_signed_is_known_again_and_a_change_is_seen(state: Path) -> None:
    run = sign(RUN)
    assert is_own(run)
    assert is_own({**run, "counts": {}, "phrasebox_version": "2"}), "only what is followed counts"
    assert not is_own({**run, "config": {**CONFIG, "rate": 0.2}})
    assert not is_own({**run, "model_fingerprint": "demo:2"})
    assert not any(is_own({**RUN, "signature": wrong}) for wrong in (None, "", "é", 1, ["x"], "0" * 64))
    assert not is_own(RUN)
    assert stat.S_IMODE((state / "key").stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["key"]


def test_other_users_and_those_without_a_key(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sign(RUN)
    monkeypatch.setenv("XDG_STATE_HOME", str(state / "other"))
    assert not is_own(run)
    assert sign(RUN)["signature"] != run["signature"]
    (state / "other" / "phrasebox" / "key").write_bytes(b"")  # damaged
    (tmp_path / "file").write_text("")
    for place in (state / "other", tmp_path / "file"):
        monkeypatch.setenv("XDG_STATE_HOME", str(place))
        assert sign(RUN)["signature"] is None
        assert not is_own(sign(RUN))


def dataset_of(folder: Path, sections: Json, *, is_own: bool = False) -> Dataset:
    run = {"config": sections}
    return Dataset(path=folder, manifest={}, run=sign(run) if is_own else run, shards=())


OUTSIDE = {
    "input": {"path": ["/data/a b.tar"], "image_root": "s3://bucket/images"},
    "model": {"name": "ViT-B-16", "pretrained": "openai", "config": None},
    "phrases": {"spacy_models": {"en": "a_package"}},
    "regions": {"calibration": "~/fit.json"},
    "source": {"kind": "boxes", "truth": "/data/truth.json"},
}


@cases(
    ("sections", "settings", "left"),
    {
        "all of it": (
            OUTSIDE,
            [],
            "input.path input.image_root regions.calibration source.truth "
            "model.name model.pretrained phrases.spacy_models",
        ),
        "what the user names, whatever it is": (
            OUTSIDE,
            [
                "input.path=/b.tar",
                "input.image_root=/b",
                "model={name: demo}",
                "phrases.spacy_models={en: x}",
                "source={}",
            ],
            "regions.calibration",
        ),
        "a checkpoint": ({"model": {"checkpoint": "/clip"}}, [], "input.path model.checkpoint"),
        "a detector": (
            {"source": {"kind": "detector", "detector": "stranger/detector"}},
            ["input.path=x"],
            "source.detector",
        ),
        "of another form": ({"input": {"path": 5}, "model": "x"}, [], "input.path"),
        "what comes with phrasebox": (
            {"model": {"name": "photo"}, "regions": {"calibration": "auto"}},
            ["input.path=x"],
            "",
        ),
    },
)
def test_what_a_stranger_names(sections: Json, settings: list[str], left: str, tmp_path: Path) -> None:
    assert list(find_unnamed(dataset_of(tmp_path, sections), settings=settings)) == left.split()
    assert find_unnamed(dataset_of(tmp_path, sections, is_own=True)) == {}, "one's own names what it likes"


def test_the_message_says_what_to_type(tmp_path: Path) -> None:
    with expect_error(ConfigError):
        check_named(dataset_of(tmp_path, OUTSIDE))


def test_every_key_that_names_a_file_is_asked_about() -> None:
    """A new one would be followed without a question."""
    sections: dict[str, list[Any]] = {
        name: [field.annotation] for name, field in RunConfig.model_fields.items()
    }
    (
        sections.pop("output"),
        sections.pop("engine"),
    )  # nobody who follows a configuration writes, or starts an engine
    keys = {f"{name}.{key}" for name, kinds in sections.items() for kind in kinds for key in files_of(kind)}
    assert keys - {*LOCATIONS, *LOADED_KEYS} == set()
    assert "model.checkpoint" in keys


def files_of(kind: Any) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if Path in {field.annotation, *typing.get_args(field.annotation)}:
                yield name
