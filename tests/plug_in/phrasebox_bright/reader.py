"""Lines of an image and its caption with a bar between them: `photos/1.jpg|a red car`."""

from typing import Any, Literal

from phrasebox.extend import LinesConfig, LinesReader, RowFault


class BarsInput(LinesConfig):
    kind: Literal["bars"] = "bars"


class BarsReader(LinesReader):
    config_type = BarsInput
    suffixes = (".bars",)

    def row_of(self, line: bytes) -> dict[str, Any]:
        image, bar, caption = line.decode("utf-8", "replace").partition("|")
        if not bar:
            raise RowFault("bad_row", "expected IMAGE|CAPTION")
        return {"image": image, "caption": caption}
