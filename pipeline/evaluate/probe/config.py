"""What is asked of a model, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ProbeConfig(BaseModel):
    """The settings of `phrasebox score-model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    residual: bool = False
    """Whether the last block's residual and MLP follow the values in the dense features of a tower with a class token.
    True is what CLIPSelf (arXiv 2310.01403) trains and measures, False what MaskCLIP without them makes of a model that
    nobody trained for it. Crops and retrieval do not depend on it."""

    prompts: tuple[str, ...] | Literal["openai_imagenet"] = ("a photo of a {}.",)
    """Sentences for the name of a class, with `{}` for the name; the class is the mean of their embeddings. `{}` is the
    bare name, `openai_imagenet` stands for OpenAI's 80. Phrases and captions are embedded as they are."""

    crops: bool = True
    """Whether every region is also cut out and embedded as an image, which takes a forward pass each. That is what the
    model knows if it sees nothing else, which CLIPSelf takes for the ceiling of dense features."""

    crop_scale: Annotated[float, Field(ge=1.0, le=10.0)] = 1.0
    """How many times as long as the box a crop's sides are. 1: the box alone, as CLIPSelf has it. A model that knows
    whole scenes only needs the surroundings: of the things of 200 drawn scenes `demo` names .164 by their boxes, and
    .475 by boxes twice as wide and high."""

    min_boxes: Annotated[int, Field(ge=1)] = 1
    """Classes with fewer boxes are left out of the mean over classes. 1: all that occur, as CLIPSelf has it."""

    pool_images: Annotated[int, Field(ge=2)] = 50
    """The images, at most, among whose regions together a phrase is looked for in the harder of the two searches."""

    @field_validator("prompts")
    @classmethod
    def _with_a_place(cls, prompts: tuple[str, ...] | str) -> tuple[str, ...] | str:
        if not prompts:
            raise ValueError("expected one prompt or more")
        for prompt in () if isinstance(prompts, str) else prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"expected one {{}} in a prompt, got {prompt!r}")
        return prompts
