"""Images as files of an export, or as names of files that stay where they are."""

from __future__ import annotations

from stages.dataset.export.base import ChosenSample
from stages.dataset.export.target import Target, number_name


class ImageFolders:
    """One folder of images for each split.

    written  whether images are written; else an entry of the export names the file below the image root
    folder   with `{split}`: "images/{split}"
    """

    def __init__(self, target: Target, splits: tuple[str, ...], folder: str, *, written: bool) -> None:
        self._paths = {split: target.numbered(folder.format(split=split)) for split in splits} if written else {}

    def place(self, sample: ChosenSample) -> str:
        """Write the image if images are written; the file name for the export's entry.

        A written file is named after the sample's id: names of samples repeat from tar to tar, and may hold anything.
        """
        if sample.image is None:
            name: str = sample.row["file_name"]
            return name
        name = number_name(sample.row["id"], sample.image.extension)
        (self._paths[sample.split] / name).write_bytes(sample.image.content)
        return name
