"""Texts -> embeddings: each unique text once, and only the tokens that it has."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.contract.errors import ConfigError
from stages.shared.model.clip import ClipModel
from stages.shared.model.deferred import open_clip
from stages.shared.model.towers.take_apart_text import take_text_apart
from stages.shared.model.towers.text import TextTower
from stages.shared.model.towers.trunk import private_copy
from stages.shared.model.transfer import to_device

WIDTHS: Final = (8, 16, 32)
"""Tokens between which attention is computed for a text; a longer one gets the model's full context. Of the phrases of
1,000 photographs 99.5 % have at most 8 tokens with the two marks around them, and 4.3 on average."""

TOKENS_PER_PASS: Final = {"cpu": 128, "cuda": 1024}
"""Tokens of one forward pass. Fewer do not repay reading the weights; more are often not full."""

FIRST_ROWS: Final = 256

NO_TEXT: Final = 0
"""Place of the row of zeros."""


@dataclass
class TextCache:
    """Unit text embeddings; each unique text is computed once.

    With templates (each holds one `{}`) the unit embeddings of the filled templates are averaged and normalised again,
    as CLIP's zero-shot classifiers do.
    """

    model: ClipModel
    templates: tuple[str, ...] = ("{}",)
    max_texts: int = 200_000
    """Beyond this number the texts that were not used for the longest time are forgotten. 200,000 embeddings of 768
    floats are 0.6 GB of the device's memory."""
    _places: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _free: list[int] = field(default_factory=list)
    _rows: Tensor | None = None
    """The embeddings, behind a row of zeros for phrases that are missing."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Texts -> float32 (len(texts), E) of unit length on the model's device."""
        self._known(texts)
        return self._taken([self._places[text] for text in texts])

    def learn(self, texts: Sequence[str]) -> None:
        """Embed texts that are asked for next: many in one call fill the forward passes."""
        if texts:
            self._known(texts)
            self._forget()

    def padded(self, texts: Sequence[Sequence[str]], step: int) -> Tensor:
        """The texts of each of B images, of which one has some -> float32 (B, P, E) on the model's device.

        P is the largest number of texts, rounded up to a multiple of `step`; rows of zeros stand for missing texts.
        """
        self._known([text for own in texts for text in own])
        longest = -(-max(map(len, texts)) // step) * step
        return self._taken([[self._places[text] for text in own] + [NO_TEXT] * (longest - len(own)) for own in texts])

    def _known(self, texts: Sequence[str]) -> None:
        """Embed what is new among the texts, and note that all were used."""
        new = [text for text in dict.fromkeys(texts) if text not in self._places]
        if new:
            self._keep(new, self._embedded(new))
        for text in texts:
            self._places.move_to_end(text)

    def _taken(self, places: Any) -> Tensor:
        """The rows at places, a list or a list of lists of one length."""
        assert self._rows is not None, "one text or more"  # noqa: S101
        rows = self._rows[to_device(torch.tensor(places), self._rows.device)]
        self._forget()
        return rows

    def _forget(self) -> None:
        while len(self._places) > self.max_texts:
            self._free.append(self._places.popitem(last=False)[1])

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        filled = [template.replace("{}", text) for text in texts for template in self.templates]
        e = F.normalize(self.model.encode_text(filled).float(), dim=-1)
        return F.normalize(e.unflatten(0, (len(texts), len(self.templates))).mean(dim=1), dim=-1)

    def _keep(self, texts: Sequence[str], embeddings: Tensor) -> None:
        """Note the embeddings in one matrix, from which many are then taken at once."""
        count = 1 + len(self._places) + len(self._free)
        wanted = count + max(0, len(texts) - len(self._free))
        held = 0 if self._rows is None else len(self._rows)
        if wanted > held:
            larger = embeddings.new_empty(max(wanted, 2 * held, FIRST_ROWS), embeddings.shape[1])
            if self._rows is None:
                larger[NO_TEXT].zero_()
            else:
                larger[:held] = self._rows
            self._rows = larger
        assert self._rows is not None  # noqa: S101
        unused = iter(range(count, wanted))
        taken = self._free[-len(texts) :]
        places = [*taken, *islice(unused, len(texts) - len(taken))]
        self._rows[to_device(torch.tensor(places), self._rows.device)] = embeddings
        # Last: a device whose memory is full fails above, and the places are free still.
        del self._free[len(self._free) - len(taken) :]
        self._places.update(zip(texts, places, strict=True))


def templates_of(named: Sequence[str] | str) -> tuple[str, ...]:
    """Text templates with `{}` for the phrase: the given ones, or the 80 that `openai_imagenet` stands for."""
    if named == "openai_imagenet":
        return tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(named)


def width_of(used: int, full: int) -> int:
    """The tokens that a text of `used` tokens is cut to, of a context of `full`."""
    return next((width for width in WIDTHS if used <= width < full), full)


def tokens_per_pass(width: int, device: torch.device) -> int:
    """Tokens of one forward pass over texts of this width."""
    return max(width, TOKENS_PER_PASS["cuda" if device.type == "cuda" else "cpu"])


class TextEncoder:
    """Texts -> embeddings, in passes of one fixed shape, so that a text's row never depends on its neighbours.

    Short texts stand behind each other in a pass instead of each on a row of the model's 77 tokens: under a causal mask
    the tokens after the end-of-text token cannot reach it, so the embedding stays the same at a tenth of the cost. For
    the same reason a beginning that several texts share ("a red", the words of a template) is computed once: no token
    of it sees what comes later. Of the phrases of 32 photographs that leaves 3.0 tokens a phrase of 4.3, and with a
    template of CLIP's 3.7 of 8.
    Towers that cannot be taken apart (`take_text_apart` says which) embed the whole context.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.device = next(model.parameters()).device
        self.tower: TextTower | None = None
        self.model: Any = None
        self._refusal = ""
        try:
            self.tower = take_text_apart(private_copy(model, None))
        except ConfigError as error:
            # A shallow copy, so that the image tower is not kept in memory for its texts' sake.
            self.model = copy.copy(model)
            self.model._modules = {name: part for name, part in model._modules.items() if name != "visual"}
            self._refusal = str(error)

    def taken_apart(self) -> TextTower:
        """The text tower. Raises ConfigError, with the reason, where it cannot be taken apart."""
        if self.tower is None:
            raise ConfigError(self._refusal)
        return self.tower

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), E), in the model's dtype."""
        tokens: Tensor = self.tokenizer(list(texts))
        return self._whole(tokens) if self.tower is None else self._packed(self.tower, tokens)

    def _whole(self, tokens: Tensor) -> Tensor:
        full = tokens.shape[1]
        rows = -(-tokens_per_pass(full, self.device) // full)
        parts = []
        for part in tokens.split(rows):
            filled = to_device(torch.cat([part, part[-1:].expand(rows - len(part), -1)]), self.device)
            parts.append(self.model.encode_text(filled)[: len(part)])
        return torch.cat(parts)

    def _packed(self, tower: TextTower, tokens: Tensor) -> Tensor:
        used = [end + 1 for end in tower.ends_of(tokens).tolist()]
        widths = [width_of(each, tokens.shape[1]) for each in used]
        order: list[int] = []
        parts = []
        tokens_of = tokens.tolist().__getitem__
        for width in sorted(set(widths)):
            slots = tokens_per_pass(width, self.device)
            members = sorted((place for place, own in enumerate(widths) if own == width), key=tokens_of)
            while members:
                first = members[:slots]
                part = _Pass.fitting(tokens[first, :width], torch.tensor([used[place] for place in first]), slots)
                parts.append(part.embeddings(tower, slots))
                fitting = len(part.ends)
                order += members[:fitting]
                members = members[fitting:]
        return torch.cat(parts)[to_device(torch.tensor(order).argsort(), self.device)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pass:
    """Texts of one forward pass, each of which shares its beginning with the one before it: S tokens of R texts.

    Attributes:
        numbers: of the tokens (S,).
        positions: of the tokens in their texts (S,).
        cells: where in `places` each token stands first, row by row (S,).
        places: which of the S tokens those of each text are (R, W).
        ends: which of the S tokens ends each text (R,).
    """

    numbers: Tensor
    positions: Tensor
    cells: Tensor
    places: Tensor
    ends: Tensor

    @classmethod
    def fitting(cls, tokens: Tensor, lengths: Tensor, slots: int) -> _Pass:
        """As many of the first of the texts as have at most `slots` tokens together.

        Args:
            tokens: Numbers of the texts' tokens (R', W), in the order of a dictionary.
            lengths: How many of the W tokens are each text's own (R',). None has more than `slots`.
            slots: See above.
        """
        shared = lengths.new_zeros(len(lengths))
        shared[1:] = (tokens[1:] == tokens[:-1]).long().cumprod(dim=1).sum(dim=1).minimum(lengths[1:])
        fitting = int(((lengths - shared).cumsum(dim=0) <= slots).sum())
        tokens, lengths, shared = tokens[:fitting], lengths[:fitting], shared[:fitting]
        column = torch.arange(tokens.shape[1])
        own = (column >= shared[:, None]) & (column < lengths[:, None])
        cells = own.flatten().nonzero().flatten()
        places = torch.zeros_like(tokens)
        places[own] = torch.arange(len(cells))
        # The tokens are numbered row by row, so the highest number above a shared one is that of the same token.
        places = places.cummax(dim=0).values
        return cls(
            numbers=tokens[own],
            positions=cells % tokens.shape[1],
            cells=cells,
            places=places,
            ends=places.gather(1, lengths[:, None] - 1).flatten(),
        )

    def embeddings(self, tower: TextTower, slots: int) -> Tensor:
        """(R, E), computed with `slots` tokens, of which those that are left over are filled with 0."""
        rest = (0, slots - len(self.numbers))
        numbers, positions, cells = (
            to_device(F.pad(each, rest), tower.device) for each in (self.numbers, self.positions, self.cells)
        )
        embeddings = tower.encode_packed(numbers, positions, to_device(self.places, tower.device), cells)
        return embeddings[to_device(self.ends, tower.device)]
