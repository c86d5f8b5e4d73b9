"""Write the usual places of nouns, the baseline that does not look at the image, for the bundled photographs.

    python -m benchmarks.photos.fit_usual_places PHOTOS OUT

PHOTOS is the folder that `benchmarks.photos.measure` describes. Places are shares of an image's sides, by noun, fitted
to the boxes that people drew in the last 500 photographs of Flickr8k's train, which no bundled photograph is from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.photos.measure import Photographs
from phrasebox.pipeline.demo.photographs import USUAL_PLACES
from phrasebox.pipeline.evaluate.estimates import plain_values


def main(photos: str, out: str) -> None:
    """Fit and write."""
    places = plain_values(Photographs(Path(photos), Path(out)).usual_places("flickr8k/train"))
    text = json.dumps(places, separators=(",", ":"), sort_keys=True)
    USUAL_PLACES.write_text(
        json.dumps(json.loads(text, parse_float=lambda share: round(float(share), 3))) + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
