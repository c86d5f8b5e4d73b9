"""Weights by a tag, from a server of the hub's protocol on this machine, with open_clip's client."""

import io
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import factory, pretrained
from rich.console import Console
from safetensors.torch import save

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.errors import WeightsError
from phrasebox.stages.model import load
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.hub import fetch
from tests.build.datasets import Json
from tests.closeness import assert_close
from tests.factories import SPEC, tiny_architecture, tiny_clip
from tests.messages import expect_error
from tests.stages.model.hub_server import Hub, serve_hub
from tests.stages.model.saved import load_model

REPOSITORY = "house/tiny"
TAG: Json = {"hf_hub": f"{REPOSITORY}/", "mean": SPEC.mean, "std": SPEC.std, "quick_gelu": True}
SAFE = f"{REPOSITORY}/open_clip_model.safetensors"


@pytest.fixture(scope="module")
def weights() -> bytes:
    model = tiny_clip(quick_gelu=True)
    return save({name: value.contiguous() for name, value in model.state_dict().items()})


@pytest.fixture
def hub(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the weights of `tiny/one`, in place of the one on the internet."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny", tiny_architecture())
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"one": TAG})
    with serve_hub(Hub(files={SAFE: weights})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield hub


def said_of_fetch() -> str:
    """The error of a fetch that fails, which is one line and says which weights and what else can be done."""
    with pytest.raises(WeightsError) as caught:
        fetch("tiny", "one")
    message = str(caught.value)
    assert message.startswith("could not get tiny/one: ")
    assert message.endswith(", or download the file where you can, and use --model tiny --weights FILE")
    assert "\n" not in message
    return message


def test_weights_are_downloaded_once_and_are_the_model_s(hub: Hub, weights: bytes, monkeypatch) -> None:
    lines: list[str] = []
    path = fetch("tiny", "one", lines.append)
    assert path.read_bytes() == weights
    place = f"{REPOSITORY} from {hub.endpoint} to {constants.HF_HUB_CACHE}"
    assert lines == [f"downloading open_clip_model.safetensors (7 MB) of {place}"]
    request_count = len(hub.requests)
    assert fetch("tiny", "one", lines.append) == path
    clip = load_model(ModelConfig(name="tiny/one", device="cpu", precision="fp32"))
    original = tiny_clip(quick_gelu=True)
    with torch.no_grad():
        expected = original.encode_text(open_clip.tokenize(["a red car"]))
    assert_close(clip.encode_text(["a red car"]), expected)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("tiny", "one", lines.append) == path
    assert len(hub.requests) == request_count, "a file in the cache takes no request"
    assert len(lines) == 1


@pytest.mark.parametrize(
    ("place", "file"), [("", "open_clip_pytorch_model.bin"), ("tiny-v1.pt", "tiny-v1.pt")]
)
def test_other_files(
    place: str, file: str, hub: Hub, weights: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without safetensors, or named by the tag, which the hub itself serves."""
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny", {"one": {**TAG, "hf_hub": f"{REPOSITORY}/{place}"}})
    hub.files = {f"{REPOSITORY}/{file}": weights}
    hub.small = bool(place)
    assert fetch("tiny", "one").name == file
    request_count = len(hub.requests)
    assert fetch("tiny", "one").name == file
    assert len(hub.requests) == request_count


def test_what_arrives_damaged_is_not_kept(hub: Hub, weights: bytes) -> None:
    hub.served = weights[:-1] + bytes(
        [weights[-1] ^ 1]
    )  # of the right size, which is all that the client looks at
    assert "open_clip_model.safetensors arrived damaged (its SHA" in said_of_fetch()
    hub.served = None
    assert fetch("tiny", "one").read_bytes() == weights


@pytest.mark.parametrize(
    "content", [b"no weights", save({"a": torch.ones(2)})], ids=["text", "another architecture"]
)
def test_a_file_that_holds_no_such_weights(content: bytes, hub: Hub) -> None:
    hub.files = {SAFE: content}
    with expect_error(WeightsError):
        load_model(ModelConfig(name="tiny/one", device="cpu"))


GATED = "house/tiny is gated: accept its terms on {endpoint}/house/tiny and log in"
NOT_THERE = "{endpoint} has no house/tiny, or not for you: update open_clip_torch, log in"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "GatedRepo", GATED),
        (401, "RepoNotFound", NOT_THERE),
        (503, "", "the download from {endpoint} to "),
    ],
)
def test_a_hub_that_refuses(status: int, code: str, message: str, hub: Hub) -> None:
    hub.refusals[REPOSITORY] = (status, code)
    assert message.format(endpoint=hub.endpoint) in said_of_fetch()


def test_a_repository_or_a_file_that_is_not_there(hub: Hub) -> None:
    hub.files = {"house/other/a": b"a"}
    assert NOT_THERE.format(endpoint=hub.endpoint) in said_of_fetch()
    hub.files = {f"{REPOSITORY}/README.md": b"a"}
    missing = (
        "house/tiny has none of open_clip_model.safetensors, open_clip_pytorch_model.bin: update open_clip"
    )
    assert missing in said_of_fetch()


def test_no_hub_can_be_reached(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setattr(constants, "HF_HUB_OFFLINE", True)
        expected = f"it is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to download it"
        assert expected in said_of_fetch()
    gone = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens
    monkeypatch.setattr(constants, "ENDPOINT", gone)
    template = gone + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert f"the download from {gone} to " in said_of_fetch()


def test_a_vocabulary_that_the_hub_does_not_have_is_an_error_of_the_weights(hub: Hub) -> None:
    """A run downloads it with the weights, before any worker starts."""
    text = {"context_length": 12, "hf_tokenizer_name": "house/words"}
    factory._MODEL_CONFIGS["tiny"] = {**tiny_architecture(), "text_cfg": text}
    with expect_error(WeightsError, key="model.weights"):
        load.fetch(describe(ModelConfig(name="tiny/one")), lambda _: None)


def test_a_run_without_its_weights_leaves_nothing_that_hinders_the_next_which_announces_the_download(
    hub: Hub, scenes_config: Json, tmp_path: Path
) -> None:
    hub.refusals[REPOSITORY] = (403, "GatedRepo")
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(Path(scenes_config["input"]["path"]).read_text().splitlines()[:2]))
    source = {**scenes_config["input"], "path": str(few)}
    sections = {"input": source, "model": {"name": "tiny/one"}, "output": {"path": str(tmp_path / "out")}}
    values = {**scenes_config, **sections}
    with expect_error(WeightsError):
        run(RunConfig.model_validate(values))
    assert not (tmp_path / "out" / ".phrasebox" / "run.json").exists()
    hub.refusals.clear()
    stream = io.StringIO()
    run(RunConfig.model_validate(values), Console(file=stream, width=400))
    assert (
        f"downloading open_clip_model.safetensors (7 MB) of house/tiny from {hub.endpoint} to "
        in stream.getvalue()
    )
