"""The doubt whether the captions of a dataset belong to its images, or are in the language of the parser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from phrasebox.stages.contract.values import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionDoubt:
    """Why most captions of a dataset are doubtful.

    Attributes:
        what: What is wrong, as a sentence.
        examples: Names of image files, each with one of its doubtful captions.
        next_step: What to do, as a sentence.
    """

    what: str
    examples: tuple[tuple[str, str], ...]
    next_step: str

    @classmethod
    def of_json(cls, values: Json) -> Self:
        """Return the doubt that `to_json` has made plain values of."""
        examples = tuple((str(name), str(caption)) for name, caption in values["examples"])
        return cls(what=str(values["what"]), examples=examples, next_step=str(values["next_step"]))

    def to_json(self) -> Json:
        """Return plain values for `dataset.json`."""
        return {
            "what": self.what,
            "examples": [list(example) for example in self.examples],
            "next_step": self.next_step,
        }

    def lines(self) -> list[str]:
        """Return the doubt for people: what is wrong, an example a line, and what to do."""
        examples = [f"    {name}: {caption}" for name, caption in self.examples]
        return [f"{self.what} For example:", *examples, self.next_step]

    def markdown(self) -> str:
        """Return the doubt as a section of a dataset's card."""
        what, *examples, next_step = self.lines()
        return "\n".join(["", "## Doubtful captions", "", what, "", *examples, "", next_step, ""])
