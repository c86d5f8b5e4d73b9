"""`phrasebox explain`: heat maps of phrases in one image, and which words of a caption count for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table
from rich.text import Text

from pipeline.commands.options import ConfigFile, ModelName, Settings
from pipeline.config import ExplainConfig, load_config
from pipeline.paths import check_writable
from pipeline.terminal import console, visible
from stages.contract.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.notebook import Locator

_BAR_CHARS: Final = 24  # of a caption's most important word


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.")],
    phrase: Annotated[
        list[str],
        typer.Option("--phrase", metavar="TEXT", help="What to look for, embedded as it is typed. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
    text: Annotated[
        list[str],
        typer.Option("--text", metavar="CAPTION", help="Print how important each word of it is. Repeatable."),
    ] = [],  # noqa: B006  typer copies it
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE.npz",
            help="NumPy file to write: arrays maps, scores and phrases; with --text also texts, text_scores, words, "
            "importance, word_text and word_spans.",
        ),
    ] = None,
    model: ModelName = None,
    config: ConfigFile = None,
    settings: Settings = [],  # noqa: B006  typer copies it
    overlay: Annotated[
        Path | None, typer.Option("--overlay", metavar="FILE.png", help="Picture of the maps over the image to write.")
    ] = None,
) -> None:
    """Compute heat maps of phrases in one image, as arrays and as a picture, and the importance of words.

    \b
    phrasebox explain image.jpg --phrase "red car" --phrase dog --out maps.npz --overlay maps.png
    phrasebox explain image.jpg --phrase "red car" --out maps.npz --model ViT-B-16/laion2b_s34b_b88k
    phrasebox explain image.jpg --text "a red car stands in front of a house"
    """
    # It imports torch.
    from pipeline.notebook import Locator  # noqa: PLC0415

    phrases = list(dict.fromkeys(" ".join(each.split()) for each in phrase))
    captions = list(dict.fromkeys(text))
    if not phrases and not captions:
        raise typer.BadParameter("expected --phrase, --text or both")
    if not all(phrases):
        raise ConfigError("--phrase: expected words, got nothing")
    if not all(caption.strip() for caption in captions):
        raise ConfigError("--text: expected words, got nothing")
    if not phrases and overlay is not None:
        raise ConfigError("--overlay: it is about heat maps: name a --phrase")
    if out is not None:
        check_writable("--out", out)
    if overlay is not None:
        check_writable("--overlay", overlay)
        if overlay.suffix.lower() not in Image.registered_extensions():
            raise ConfigError(f"--overlay: {overlay} does not end like a picture, for example in .png")
    locator = Locator(run=load_config(config, settings, ExplainConfig, assigned={"model.name": model}))
    arrays: dict[str, Any] = {}
    if phrases:
        arrays |= _explain_phrases(locator, image, phrases, overlay)
    if captions:
        arrays |= _explain_words(locator, image, captions)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("wb") as file:
            np.savez(file, **arrays)
        console.print(f"{'maps' if phrases else 'importance'} in {out}", soft_wrap=True)


def _explain_phrases(locator: Locator, image: Path, phrases: list[str], overlay: Path | None) -> dict[str, Any]:
    """Print the table of phrases and write the picture; the arrays."""
    found = locator(image, phrases)
    table = Table("phrase", "cosine", "peak x, y (0 .. 1)", title=image.name, title_justify="left")
    for text, similarity, fault, values in zip(phrases, found.similarities, found.faults, found.heat_maps, strict=True):
        table.add_row(text, f"{similarity:.3f}", fault or _peak(values, found.shift_cells))
    console.print(table)
    if overlay is not None:
        overlay.parent.mkdir(parents=True, exist_ok=True)
        found.heat_picture().save(overlay)
        console.print(f"picture in {overlay}", soft_wrap=True)
    return {"maps": found.heat_maps, "scores": found.similarities, "phrases": np.array(phrases)}


def _explain_words(locator: Locator, image: Path, captions: list[str]) -> dict[str, Any]:
    """Print each caption with its words' importance; the arrays."""
    answers = locator.words(image, captions)
    words = [(number, word) for number, answer in enumerate(answers) for word in answer.words()]
    for number, (caption, answer) in enumerate(zip(captions, answers, strict=True)):
        own = [word for member, word in words if member == number]
        most = max((word.importance for word in own), default=0.0) or 1.0
        marked = Text(visible(caption))
        table = Table("word", "importance", "", title=f"{image.name}, cosine {answer.cosine:.3f}", title_justify="left")
        for word in own:
            share = word.importance / most
            if marked.plain == caption and share > 0:
                marked.stylize(
                    f"black on rgb(255,{255 - round(150 * share)},{255 - round(225 * share)})", word.start, word.end
                )
            bar = ("\u2588" if console.encoding.startswith("utf") else "#") * round(_BAR_CHARS * share)
            table.add_row(visible(caption[word.start : word.end]), f"{word.importance:.3f}", bar)
        console.print(marked)
        console.print(table)
        if not any(word.importance for word in own):
            console.print("no word speaks for this image")
    return {
        "texts": np.array(captions),
        "text_scores": np.array([answer.cosine for answer in answers], np.float32),
        "words": np.array([captions[number][word.start : word.end] for number, word in words], np.str_),
        "importance": np.array([word.importance for _, word in words], np.float32),
        "word_text": np.array([number for number, _ in words], np.int64),
        "word_spans": np.array([(word.start, word.end) for _, word in words], np.int64).reshape(-1, 2),
    }


def _peak(values: NDArray[np.float32], shift_cells: float) -> str:
    height, width = values.shape
    y, x = divmod(int(values.argmax()), width)
    return f"{(x + 0.5 + shift_cells) / width:.2f}, {(y + 0.5 + shift_cells) / height:.2f}"
