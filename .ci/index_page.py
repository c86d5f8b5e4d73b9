"""The page of phrasebox on a package index: README.md, whose links lead to the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<is_picture>!?)(?P<text>\[[^\]]*\])\(\./(?P<path>[^)]+)\)")


class IndexPage(MetadataHookInterface):
    """Called by hatchling, which finds it by its base class."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the field `readme`; links lead to the tag of the version, so that they stay as they are."""
        repository, tag = metadata["urls"]["Repository"], f"v{metadata['version']}"

        def absolute_link(link: re.Match[str]) -> str:
            view = "raw" if link["is_picture"] else "blob"
            return f"{link['is_picture']}{link['text']}({repository}/{view}/{tag}/{link['path']})"

        page = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        page = page.replace("git clone URL ", f"git clone {repository} ")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": _LINK.sub(absolute_link, page),
        }
