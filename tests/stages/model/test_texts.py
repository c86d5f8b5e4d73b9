"""Embeddings of texts: open_clip's, each text once, and only the tokens that it has."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phrasebox.stages.contract.stage import Device
from phrasebox.stages.model import text_encoder
from phrasebox.stages.model.clip import ClipModel
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from phrasebox.stages.model.load import from_open_clip
from phrasebox.stages.model.module import module_of
from phrasebox.stages.model.text_cache import TextCache
from phrasebox.stages.model.text_encoder import TextEncoder, TextTower, split_by_length, text_tower_of
from tests.closeness import assert_close
from tests.factories import SPEC, tiny_architecture, tiny_clip
from tests.stages.explain.models import tokenizer
from tests.stages.model.saved import load_model

TEXTS = [
    "a car",
    "a red car",
    "a dog in a red car",
    "",
    *("!", "! ! !", "wow! two dogs! really!", "!" * 40),  # the id of "!" is 0, like that of padding
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
    "a fourteen word phrase " * 5,
    "far too long for the model's context of seventy-seven tokens " * 12,
    "<end_of_text> a red car",
    "Zwölf Boxkämpfer 拳击手 🚗",
    *(" ".join(["dog"] * words) for words in (1, 75, 76, 200)),  # two marks around them fill the 77 tokens
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return tiny_clip()


def embed_whole(network: nn.Module, texts: list[str]) -> Tensor:
    with torch.no_grad():
        return network.encode_text(tokenizer(texts))


@pytest.mark.parametrize("tokens_per_pass", [1, 20, 4096])
@pytest.mark.parametrize("pass_cost", [0, 40, 2000])
def test_texts_of_all_lengths_in_any_order(
    network: nn.Module, tokens_per_pass: int, pass_cost: int, monkeypatch
) -> None:
    monkeypatch.setitem(text_encoder.PASSES, "cpu", text_encoder.Passes(tokens_per_pass, pass_cost))
    encode = TextEncoder(network, tokenizer)
    for texts in (TEXTS, TEXTS[::-1], [*TEXTS, *TEXTS[::2]], TEXTS[:1]):
        embeddings = encode(texts)
        assert_close(embeddings, embed_whole(network, texts))
        assert not embeddings.requires_grad


@pytest.mark.parametrize(
    ("text_options", "is_cut"),
    [
        ({"no_causal_mask": True, "pool_type": "argmax"}, False),
        ({"pool_type": "last"}, False),
        ({"embed_cls": True}, False),
        ({"proj_type": "none"}, True),
        ({"proj_bias": True}, True),
        ({"pool_type": "eos", "eos_id": 49407}, True),
    ],
    ids=str,
)
def test_custom_text_towers(text_options: dict[str, object], is_cut: bool) -> None:
    """Where tokens after the end count, or another one is pooled, the whole context is embedded."""
    architecture = tiny_architecture()
    architecture["text_cfg"].update(text_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = open_clip.CustomTextCLIP(**architecture).eval()
    encode = TextEncoder(other, tokenizer)
    assert (encode.tower is not None) == is_cut
    assert_close(encode(TEXTS), embed_whole(other, TEXTS))


@pytest.mark.parametrize("text_options", [{"qk_norm": True}, {"scale_attn": True}], ids=str)
def test_blocks_with_options_are_open_clip_s(text_options: dict[str, object]) -> None:
    architecture = tiny_architecture()
    architecture["text_cfg"].update(text_options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = open_clip.CustomTextCLIP(**architecture).eval()
    assert text_tower_of(other).blocks is None
    assert_close(TextEncoder(other, tokenizer)(TEXTS), embed_whole(other, TEXTS))


class Doubled(nn.Linear):
    """A layer with twice the result, as an adapter changes it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("part", ["mlp.c_fc", "mlp.c_proj"])
def test_blocks_with_a_part_that_was_replaced_are_open_clip_s(part: str) -> None:
    other = tiny_clip()
    assert text_tower_of(other).blocks is not None
    parent, _, name = f"transformer.resblocks.0.{part}".rpartition(".")
    layer = other.get_submodule(f"{parent}.{name}")
    doubled = Doubled(layer.in_features, layer.out_features)
    doubled.load_state_dict(layer.state_dict())
    setattr(other.get_submodule(parent), name, doubled)
    assert text_tower_of(other).blocks is None
    assert_close(TextEncoder(other, tokenizer)(TEXTS), embed_whole(other, TEXTS))


def test_plain_blocks_are_computed_without_a_transposed_input(network: nn.Module, monkeypatch) -> None:
    """`nn.MultiheadAttention` transposes it, which a CPU's product pays for."""
    monkeypatch.setattr(nn.MultiheadAttention, "forward", lambda *_, **__: pytest.fail("it was called"))
    assert TextEncoder(network, tokenizer)(TEXTS).isfinite().all()


def clip_with_texts_of(**settings: object) -> nn.Module:
    architecture = tiny_architecture()
    architecture["text_cfg"] |= settings
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return open_clip.CustomTextCLIP(**architecture).eval()


@pytest.mark.parametrize(
    ("width", "precision", "expected"),
    [
        (384, None, torch.float32),
        (384, torch.bfloat16, torch.bfloat16),
        (384, torch.float16, torch.float32),
        (320, torch.bfloat16, torch.float32),
    ],
    ids=["none", "bf16", "fp16", "narrow"],
)
def test_products_of_wide_texts_have_the_precision_of_a_run_in_bf16(
    width: int, precision: torch.dtype | None, expected: torch.dtype
) -> None:
    network = clip_with_texts_of(width=width, heads=4, layers=2)
    encode = TextEncoder(network, tokenizer, precision)
    assert isinstance(encode.tower, TextTower)
    assert {block.fc.weight.dtype for block in encode.tower.blocks} == {expected}
    embeddings = encode(TEXTS)
    theirs = embed_whole(network, TEXTS)
    assert F.cosine_similarity(embeddings, theirs, dim=-1).min() > 0.999
    assert network.text.transformer.resblocks[0].mlp.c_fc.weight.dtype == torch.float32, (
        "the model is only read"
    )


def test_blocks_of_open_clip_keep_fp32_on_a_cpu() -> None:
    other = clip_with_texts_of(qk_norm=True)
    assert TextEncoder(other, tokenizer, torch.bfloat16)(TEXTS).dtype == torch.float32


def test_gradients_of_plain_blocks_are_open_clip_s() -> None:
    """They reach the weights of a model in training."""
    network = tiny_clip().requires_grad_(True)
    tokens = tokenizer(TEXTS[:4])

    def gradients(embed: Callable[[Tensor], Tensor]) -> list[Tensor]:
        network.zero_grad()
        embed(tokens).square().sum().backward()
        return [weight.grad.clone() for weight in network.transformer.parameters()]

    for ours, theirs in zip(
        gradients(text_tower_of(network).encode), gradients(network.encode_text), strict=True
    ):
        assert_close(ours, theirs)


def test_the_bundled_model_s_own_context_length() -> None:
    """Its tokenizer has its own words and a shorter context."""
    encode = load_model(ModelConfig(name="demo", device="cpu", precision="fp32")).encode_text
    assert isinstance(encode, TextEncoder)
    assert encode.tower is not None, "texts are cut off at their end"
    with torch.no_grad():
        full = module_of(describe(ModelConfig(name="demo"))).encode_text(encode.tokenizer(TEXTS))
    assert_close(encode(TEXTS), full)


@pytest.fixture(scope="module")
def model(network: nn.Module) -> ClipModel:
    return from_open_clip(network, tokenizer, SPEC)


@pytest.mark.parametrize(("kind", "most"), [("cpu", 13), ("cuda", 3)])
def test_texts_of_a_batch_take_few_passes(kind: Device, most: int) -> None:
    """320 captions of 64 photographs, and their phrases: a GPU pays for passes, a CPU for padding."""
    lengths = torch.cat([8 + torch.arange(320) % 15, 3 + torch.arange(400) % 6])
    passes = list(split_by_length(lengths, text_encoder.PASSES[kind]))
    assert torch.cat([rows for _, rows in passes]).sort().values.equal(torch.arange(720))
    assert len(passes) <= most
    tokens = sum(length * len(rows) for length, rows in passes)
    assert int(lengths.sum()) <= tokens <= int(lengths.sum()) + len(passes) * text_encoder.PASSES[kind].cost


class RecordingEncoder:
    """A model's text encoder that remembers what it was asked."""

    def __init__(self, model: ClipModel) -> None:
        self.texts: list[str] = []
        self._encode = model.encode_text
        self.model = replace(model, encode_text=self)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        self.texts.extend(texts)
        return self._encode(texts)


def test_each_text_is_computed_once_and_answered_in_order_as_a_unit_vector(model: ClipModel) -> None:
    encoder = RecordingEncoder(model)
    cache = TextCache(encoder.model)
    rows = cache(["dog", "cat", "dog"])
    assert rows.dtype == torch.float32
    assert_close(rows, F.normalize(model.encode_text(["dog", "cat", "dog"]), dim=-1))
    cache(["cat", "bird"])
    cache(["bird", "dog", "cat"])
    assert encoder.texts == ["dog", "cat", "bird"]


def test_templates_are_filled_and_averaged(model: ClipModel) -> None:
    encoder = RecordingEncoder(model)
    cache = TextCache(encoder.model, ("a photo of a {}", "{} and {}"))
    rows = cache(["dog", "a {} b"])
    assert encoder.texts == ["a photo of a dog", "dog and dog", "a photo of a a {} b", "a {} b and a {} b"]
    for row, text in zip(rows, ["dog", "a {} b"], strict=True):
        parts = [template.replace("{}", text) for template in cache.templates]
        mean = F.normalize(model.encode_text(parts), dim=-1).mean(dim=0)
        assert_close(row, F.normalize(mean, dim=-1))


def test_the_texts_that_were_not_used_for_longest_are_forgotten(model: ClipModel) -> None:
    encoder = RecordingEncoder(model)
    cache = TextCache(encoder.model, max_texts=2)
    first = cache(["a", "b", "c"])
    assert len(first) == 3, "more than fit may be asked for at once"
    cache(["b", "c"])
    assert encoder.texts == ["a", "b", "c"]
    assert_close(cache(["a"])[0], first[0])
    cache(["c", "b"])
    assert encoder.texts == ["a", "b", "c", "a", "b"]
    for number in range(20):
        cache(["dog", f"new {number}"])
    assert encoder.texts.count("dog") == 1, "it is used in every batch"


def test_memory_does_not_grow_with_the_texts_that_were_forgotten(model: ClipModel) -> None:
    """Their rows are taken by those that follow."""
    cache = TextCache(model, max_texts=50, max_aside=10)
    for number in range(40):
        cache(["dog", *(f"{number} {other}" for other in range(60))])
        cache.set_aside([f"{number} {other}" for other in range(30, 60)])
    assert len(cache._rows) + len(cache._aside) <= 60
    values = cache._table._values
    assert values is not None
    assert len(values) <= 1 + 50 + 10 + 61, "the texts of a call may be more than are kept"


def test_rows_that_others_have_taken_keep_no_old_numbers(model: ClipModel) -> None:
    """Each text has its own embedding, however often its row had another."""
    cache = TextCache(model, max_texts=3, max_aside=2)
    for number in range(30):
        texts = [f"text {number % 7}", f"{number} dogs", "a cat"]
        assert_close(cache(texts), F.normalize(model.encode_text(texts), dim=-1))
        cache.set_aside(texts[:2])


def test_a_table_of_many_texts_grows(model: ClipModel) -> None:
    cache = TextCache(model)
    for first in range(0, 3000, 600):
        cache.embed_ahead([f"{number} dogs" for number in range(first, first + 600)])
    texts = ["2999 dogs", "0 dogs", "1024 dogs"]
    assert_close(cache(texts), F.normalize(model.encode_text(texts), dim=-1))


def test_texts_that_were_set_aside_are_computed_once_while_they_are_among_the_last(
    model: ClipModel,
) -> None:
    encoder = RecordingEncoder(model)
    cache = TextCache(encoder.model, max_aside=2)
    first = cache(["dog", "a dog runs", "a cat"])
    cache.set_aside(["a dog runs", "a cat", "never embedded"])
    assert torch.equal(cache(["a cat", "a dog runs"]), first[[2, 1]])
    assert encoder.texts == ["dog", "a dog runs", "a cat"]
    for number in range(5):
        cache([f"caption {number}"])
        cache.set_aside([f"caption {number}", "a dog runs"] if number == 0 else [f"caption {number}"])
    assert {*cache._aside} == {"caption 3", "caption 4"}
    assert {*cache._rows} == {"dog", "a cat"}, "a text that is used again is no longer aside"
    assert_close(cache(["a dog runs"])[0], first[1])
    assert encoder.texts.count("a dog runs") == 2


def test_texts_of_images_are_padded_to_a_step(model: ClipModel) -> None:
    cache = TextCache(model)
    embeddings = cache.embed_padded([["dog", "cat"], [], ["a red car", "dog", "bird"]], step=4)
    assert embeddings.shape == (3, 4, model.embed_dim)
    assert torch.equal(embeddings[2, :3], cache(["a red car", "dog", "bird"]))
    assert torch.equal(embeddings[0, :2], cache(["dog", "cat"]))
    assert not embeddings[1].any()
    assert not embeddings[0, 2:].any()
