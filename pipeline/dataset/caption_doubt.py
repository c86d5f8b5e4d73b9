"""Whether the captions of a dataset seem to belong to its images, by what the run has judged of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import pyarrow.compute as pc

from phrasebox.pipeline.dataset.tally import Rows
from phrasebox.stages.contract.caption_doubt import CaptionDoubt
from phrasebox.stages.contract.records import OTHER_LANGUAGE, UNREAD_LANGUAGE
from phrasebox.stages.files.lifted_shards import shard_file
from phrasebox.stages.files.storage import AnyPath
from phrasebox.stages.write import Tally

MOST: Final = 0.5
"""The share of absent phrases above which captions are doubtful, and that of rows with a caption in
another language.

`photo` judges 0 and 0.7 % of the phrases absent on 60 photographs of Flickr8k with one and with
five captions, and 0 % on 60 of COCO. Where half of the captions are other photographs', it is 44 %
and 36 % with one caption; where all are, 90, 93 and 78 %."""

EXAMPLES: Final = 2
CAPTION_CHARACTERS: Final = 100

_LEAST_LIKELY: Final = """
SELECT shard, id FROM samples WHERE error IS NULL AND absent > 0
ORDER BY absent / phrases DESC, absent DESC, shard, id LIMIT ?
"""
_OF_OTHER_LANGUAGE: Final = """
SELECT shard, id FROM samples WHERE other_language ORDER BY error IS NOT NULL, phrases, shard, id LIMIT ?
"""
_OF_UNREAD_LANGUAGE: Final = """
SELECT shard, id FROM samples WHERE unread_language ORDER BY error IS NOT NULL, phrases, shard, id LIMIT ?
"""
_COLUMNS: Final = ["id", "file_name", "captions", "warnings", "absent.list.element.caption_index"]
_FIRST_INDEX: Final = re.compile(
    rf"^(?:{re.escape(OTHER_LANGUAGE)}|{re.escape(UNREAD_LANGUAGE)}).*?: (\d+) \("
)


def find_caption_doubt(
    rows: Rows, shards: Sequence[AnyPath], total: Tally, *, expects_absent: bool
) -> CaptionDoubt | None:
    """Return the doubt about the captions of a dataset; None if there is none.

    Args:
        rows: The light columns of the shards.
        shards: The shards, in the order of `rows`.
        total: Their counts.
        expects_absent: Whether the user has said how many phrases are absent.
    """
    if total.other_language > MOST * total.rows:
        places = rows.ask(_OF_OTHER_LANGUAGE, EXAMPLES)
        return CaptionDoubt(
            what=f"{total.other_language / total.rows:.0%} of the images have a caption in another language than "
            "phrases.language.",
            examples=tuple(_example(shards[shard], number) for shard, number in places),
            next_step="Set phrases.language, for example to auto: docs/how-to/other-languages.md",
        )
    if total.unread_language > MOST * total.rows:
        places = rows.ask(_OF_UNREAD_LANGUAGE, EXAMPLES)
        return CaptionDoubt(
            what=f"{total.unread_language / total.rows:.0%} of the images have a caption in a language that the model "
            "does not read.",
            examples=tuple(_example(shards[shard], number) for shard, number in places),
            next_step="Choose a model that was trained on several languages: docs/how-to/other-languages.md",
        )
    if total.absent > MOST * total.phrases and not expects_absent:
        places = rows.ask(_LEAST_LIKELY, EXAMPLES)
        return CaptionDoubt(
            what=f"{total.absent / total.phrases:.0%} of the phrases are judged not to be in their images: the "
            "captions do not seem to belong to these images.",
            examples=tuple(_example(shards[shard], number) for shard, number in places),
            next_step="Compare names and captions in the input: docs/how-to/filter-captions.md",
        )
    return None


def _example(shard: AnyPath, number: int) -> tuple[str, str]:
    """Return the file name of the row with an id, and a doubtful caption of it."""
    with shard_file(shard) as file:
        table = file.read(columns=_COLUMNS)
    row: Any = table.filter(pc.field("id") == number).slice(0, 1).to_pylist()[0]
    indices = [entry["caption_index"] for entry in row["absent"] or ()]
    indices += [int(match[1]) for note in row["warnings"] or () if (match := _FIRST_INDEX.match(note))]
    captions = row["captions"]
    caption = " ".join(captions[indices[0] if indices else 0].split())
    if len(caption) > CAPTION_CHARACTERS:
        caption = f"{caption[:CAPTION_CHARACTERS].rstrip()}…"
    return row["file_name"], caption
