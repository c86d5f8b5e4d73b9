"""Does the importance of a phrase tell what humans marked as not visual? On photographs of Flickr8k.

    python -m tests.photos.words dev.entities.tar.gz --images IMAGES --captions train.jsonl

`--images` is the unpacked dev.images.tar. Flickr30k Entities marks every noun phrase of a caption and gives those that
show nothing ("the background", "front", "a trick") the chain 0. Each phrase is asked for as a run asks for it, with its
span in its caption. The area under the ROC curve of visual against not visual phrases is told, with 95 % bootstrap
intervals over photographs, for the importance and for what costs nothing: the cosine of photograph and phrase, how
often other captions (`--captions`) say the phrase, its number of words and its place in the caption. Last, whether
importance adds to these in a logistic regression, each photograph judged by a fit to others. `--last train.jsonl`
takes the 500 photographs that the photograph model never saw, on which the defaults were chosen. `--shifted` shows each
caption the next photograph instead of its own: what importance then still tells, it knows from the words alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ExplainConfig, load_config
from pipeline.evaluate.estimates import out_of_fold, presence_area, weighted_estimate
from pipeline.graph import build_steps
from stages.contract.records import ImageRef, Phrase, Record, Sample
from stages.phrases.filters import normalise

Floats = NDArray[np.float64]

MARK: Final = re.compile(r"\[/EN#(?P<chain>\d+)/\S+ (?P<words>[^\]]*)\]")
NOT_VISUAL: Final = "0"

COSTS_NOTHING: Final = ("cosine", "frequency", "words", "place")


@dataclass(frozen=True, slots=True)
class Marked:
    """A photograph with the phrases that humans marked."""

    name: str  # of its file, without the ending
    captions: tuple[str, ...]  # without the marks
    phrases: tuple[Phrase, ...]  # in their order
    visual: tuple[bool, ...]  # for each phrase, whether it shows something


def marked_photographs(entities: Path) -> Iterator[Marked]:
    """The photographs of Flickr30k Entities' sentences in a .tar.gz, in the order of their names."""
    with tarfile.open(entities) as members:
        texts = {
            Path(member.name).stem: file.read().decode("utf-8-sig")
            for member in members
            if member.name.endswith(".txt") and (file := members.extractfile(member)) is not None
        }
    for name in sorted(texts):
        captions, phrases, visual = [], [], []
        for index, line in enumerate(texts[name].strip().split("\n")):
            caption, place = "", 0
            for mark in MARK.finditer(line):
                caption += line[place : mark.start()]
                place, start = mark.end(), len(caption)
                caption += mark["words"]
                text = normalise(mark["words"])
                if text:
                    phrases.append(Phrase(text=text, caption_index=index, start=start, end=len(caption), head=text))
                    visual.append(mark["chain"] != NOT_VISUAL)
            captions.append(caption + line[place:])
        yield Marked(name, tuple(captions), tuple(phrases), tuple(visual))


def said_often(captions: Path) -> Mapping[str, int]:
    """How often each sequence of at most five words stands in captions."""
    counts: dict[str, int] = {}
    for line in captions.read_text(encoding="utf-8").splitlines():
        for caption in json.loads(line)["captions"]:
            words = caption.lower().split()
            for start in range(len(words)):
                for end in range(start + 1, min(start + 6, len(words) + 1)):
                    text = " ".join(words[start:end])
                    counts[text] = counts.get(text, 0) + 1
    return counts


def features_of(
    photographs: Sequence[Marked], shown: Sequence[Path], often: Mapping[str, int], settings: Sequence[str]
) -> tuple[dict[str, Floats], NDArray[np.bool_], NDArray[np.int64]]:
    """Of each phrase whose importance is known: what it is judged by, whether it is visual, and its photograph.

    shown: The image file that stands for each photograph.
    """
    given = ["model.name=photo", "model.pretrained=null", "explain.importance=eos", *settings]
    steps = build_steps(load_config(None, given, ExplainConfig))
    stages = (steps.before[1], steps.model)
    for stage in stages:
        stage.setup()
    rows: list[tuple[float, ...]] = []
    visual: list[bool] = []
    owners: list[int] = []
    for start in range(0, len(photographs), steps.model.batch_rows()):
        part = photographs[start : start + steps.model.batch_rows()]
        records = [_record(photograph, path) for photograph, path in zip(part, shown[start:], strict=False)]
        for stage in stages:
            records = stage.process(records)
        for number, (photograph, record) in enumerate(zip(part, records, strict=True)):
            cosines = {heat_map.text: heat_map.similarity for heat_map in record.heat_maps}
            for phrase, shows in zip(record.phrases, photograph.visual, strict=True):
                if phrase.importance is None:
                    continue
                length = len(record.sample.captions[phrase.caption_index])
                told = -math.log1p(often.get(phrase.text, 0))
                words = len(phrase.text.split())
                rows.append((phrase.importance, cosines[phrase.text], told, words, -phrase.start / length))
                visual.append(shows)
                owners.append(start + number)
    table = np.array(rows, np.float64)
    named = {name: table[:, column] for column, name in enumerate(("importance", *COSTS_NOTHING))}
    return named, np.array(visual, np.bool_), np.array(owners, np.int64)


def _record(photograph: Marked, path: Path) -> Record:
    image = ImageRef(file_name=path.name, url=str(path.absolute()))
    sample = Sample(sample_id=photograph.name, source=path.name, captions=photograph.captions, image=image)
    return replace(Record.start(sample), phrases=photograph.phrases)


def told(features: Mapping[str, Floats], visual: NDArray[np.bool_], owners: NDArray[np.int64]) -> str:
    """The figures, for people."""
    photographs = len(np.unique(owners))
    lines = [f"{visual.size:,} phrases of {photographs:,} photographs, {np.count_nonzero(~visual):,} not visual"]
    plain = np.stack([features[name] for name in COSTS_NOTHING], axis=1)
    judged = dict(features)
    judged["all but importance"] = out_of_fold(plain, visual, owners)
    judged["with importance"] = out_of_fold(np.column_stack([plain, features["importance"]]), visual, owners)
    areas = {name: presence_area(values, visual) for name, values in judged.items()}
    for name, area in areas.items():
        found = weighted_estimate(area, owners)
        lines.append(f"{name:>20} {found.value:.3f} ({found.low:.3f}-{found.high:.3f})")
    pairs = (("importance", "cosine"), ("importance", "frequency"), ("with importance", "all but importance"))
    for one, other in pairs:
        gain = weighted_estimate(lambda weights, a=areas[one], b=areas[other]: a(weights) - b(weights), owners)
        lines.append(f"{one} less {other}: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entities", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--most", type=int, default=None, help="photographs, the first by name")
    parser.add_argument("--last", type=Path, help="only the last 500 photographs of this .jsonl")
    parser.add_argument("--shifted", action="store_true", help="show each caption the next photograph")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    photographs = list(marked_photographs(given.entities))
    if given.last is not None:
        named = {json.loads(line)["id"] for line in given.last.read_text(encoding="utf-8").splitlines()[-500:]}
        photographs = [each for each in photographs if each.name in named]
    photographs = photographs[: given.most]
    shown = [next(given.images.glob(f"{each.name}.*")) for each in photographs]
    if given.shifted:
        shown = [*shown[1:], shown[0]]
    print(told(*features_of(photographs, shown, said_often(given.captions), given.set)))


if __name__ == "__main__":
    main()
