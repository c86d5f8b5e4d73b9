"""Find phrases in one image from Python, for example in a notebook:

    import open_clip
    from phrasebox.pipeline.locator import Locator

    model, _, _ = open_clip.create_model_and_transforms("ViT-B-16", pretrained="laion2b_s34b_b88k")
    located = Locator.from_open_clip(model)("photo.jpg", ["a red car", "two dogs"])
    located  # shows the picture; located.heat_maps, .boxes_xyxy_px, .masks and .scores are arrays
    for region in located:
        print(region.phrase, region.score, region.box_xyxy_px)

An image goes through the stages of a run, as questions of `phrasebox.pipeline.run.record_maker` do. As in a
run, the model embeds "a red car" without its article, as "red car"; with `explain.variant: authors` it embeds
texts as typed. The phrases of a call are questions and no caption: each is judged by itself, and half of them are
expected to name nothing in the image (`phrasebox.pipeline.run.questions.QUESTION_SHARE`). With
`regions.absent_share` and `regions.exponent` of a run, the result equals the row that this run writes for the
same phrases if all its captions are their images' own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image
from pydantic import BaseModel

from phrasebox.pipeline.config.run_config import ExplainCommandConfig, RunConfig
from phrasebox.pipeline.located import Located
from phrasebox.pipeline.pictures import encode_pixels
from phrasebox.pipeline.run.generic import reject_generic
from phrasebox.pipeline.run.record_maker import RecordMaker
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.records import ImageRef, Sample
from phrasebox.stages.contract.values import Json, Rgb
from phrasebox.stages.files.storage import absolute, open_file
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.phrases.filters import tidy_words

if TYPE_CHECKING:
    from phrasebox.stages.model.clip import ClipModel

IN_MEMORY: Final = "image"  # the name of an image without a path in messages

Section = Mapping[str, Any] | BaseModel | None
"""A section of a run's configuration, as plain values or as its model."""

ImageLike = str | os.PathLike[str] | bytes | Image.Image | Rgb


class Locator:
    """Finds phrases in images with one CLIP model, which is loaded once.

    With `explain.contrast` the phrases of one call compete for the heat, as those of one caption
    do. A run averages the heat maps of all phrases that its captions have for an object, so its
    box can differ from that of a phrase alone.

    A locator sees no captions, so it cannot estimate how many phrases name nothing in their
    images. Unless `regions.absent_share` says so it expects half of them: few absent objects then
    get a region, and some objects that are there get none. Give `regions={"absent_share": 0.05}`
    for phrases that you know to be in the image.

    Args:
        model: "photo" for the bundled model for photographs; "demo" for the bundled one for
            synthetic scenes; "NAME/TAG" for open_clip's pretrained models; the path of a
            checkpoint or of a fine-tuning's folder; the `model` section of a run as a dict or
            `ModelConfig`; or a `ClipModel` in memory. See `from_open_clip` for a model of
            open_clip.
        explain: The `explain` section of a run, as a dict or as an explainer's settings.
        regions: The `regions` section of a run, as a dict or `RegionsConfig`.
        phrases: The `phrases` section of a run, as in `{"language": "fr"}`.
        run: A run's configuration, for all that the other arguments leave out.

    Raises:
        ConfigError: A setting or the model cannot be used; the message names the key.
        WeightsError: The weights are missing or damaged, or cannot be downloaded.
        ResourceError: The device is not there.

    >>> from phrasebox import Locator
    >>> locate = Locator("demo")
    >>> located = locate("photo.jpg", ["a red ball", "two boxes"])
    >>> located.phrases, located.heat_maps.ndim
    (('a red ball', 'two boxes'), 3)
    >>> located.boxes_xyxy_px.shape == (len(located), 4)
    True
    >>> {region.phrase for region in located} <= {*located.phrases}
    True
    >>> located.picture().save("regions.png")
    """

    def __init__(
        self,
        model: str | Mapping[str, Any] | ModelConfig | ClipModel | None = None,
        *,
        explain: Section = None,
        regions: Section = None,
        phrases: Section = None,
        run: RunConfig | None = None,
    ) -> None:
        values: Json = {} if run is None else dict(run)
        section = {"name": os.fspath(model)} if isinstance(model, (str, os.PathLike)) else model
        loaded = None if section is None or isinstance(section, (Mapping, ModelConfig)) else section
        if loaded is not None and not hasattr(loaded, "tower"):
            raise ConfigError(
                f"Locator takes a name or settings, Locator.from_open_clip a model: got {type(loaded)}"
            )
        sections = {
            "explain": explain,
            "regions": regions,
            "phrases": phrases,
            "model": section if loaded is None else None,
        }
        values |= {name: value for name, value in sections.items() if value is not None}
        config = ExplainCommandConfig.model_validate(values)
        config = config.model_copy(update={"model": config.model.model_copy(update={"batch_size": 1})})
        steps = build_steps(config, loaded)
        reject_generic(steps)
        self._limits = DecodeLimits(max_pixels=config.images.max_pixels, max_bytes=config.images.max_bytes)
        self._maker = RecordMaker(steps)
        name = config.model.label if loaded is None else loaded.name
        self._description = f"{name} by {steps.explainer.kind} on {self._maker.device}"

    def __repr__(self) -> str:
        """Return model, explainer and device on one line."""
        return f"Locator({self._description})"

    @classmethod
    def from_open_clip(
        cls,
        model: Any,
        tokenizer: Any = None,
        *,
        explain: Section = None,
        regions: Section = None,
        phrases: Section = None,
    ) -> Locator:
        """Return a locator for a model that `open_clip` has loaded, on the device that the model is on.

        The model is only read: mode, hooks, flags and outputs stay as they are. Make a new
        locator after the model's weights have changed. `phrasebox models` lists the supported
        image towers of CLIP and CustomTextCLIP. Models with CLIP's own vocabulary do not need
        `tokenizer`, the result of `open_clip.get_tokenizer`.

        Raise ConfigError if the model is not supported, its tokenizer is missing, or a setting is wrong.
        """
        from phrasebox.stages.model.load import from_open_clip  # noqa: PLC0415  it loads torch and open_clip

        return cls(from_open_clip(model, tokenizer), explain=explain, regions=regions, phrases=phrases)

    def __call__(self, image: ImageLike, phrases: str | Sequence[str]) -> Located:
        """Compute the heat maps and regions of one or several phrases in an image.

        Phrases are embedded as a run embeds the phrases of a caption: in lower case and without
        leading articles, see `phrasebox.stages.phrases.filters.normalise`. With `explain.variant: authors`
        they are embedded as typed. `Located.phrases` has them unchanged. A plural ("two dogs") may
        have several regions. The image is a path or URL, an encoded image, a Pillow image, or an
        array uint8 (height, width, 3) in RGB. EXIF orientation is applied.

        Raises:
            ConfigError: There is no phrase, or one is empty.
            InputError: The image cannot be read or is damaged.
            ResourceError: The GPU's memory does not hold the image and its phrases.
        """
        texts = (phrases,) if isinstance(phrases, str) else tuple(phrases)
        if not texts or not all(isinstance(text, str) and tidy_words(text) for text in texts):
            raise ConfigError(f"expected one or several phrases, none of them empty, got {list(texts)!r}")
        name, content = _content(image)
        sample = Sample(
            sample_id=name,
            source=name,
            captions=texts,
            image=ImageRef(file_name=name, content=content),
        )
        record = self._maker.answer(sample)
        if record.error is not None:
            raise InputError(str(record.error))
        maker = self._maker.question_regions.maker
        maps = {heat_map.text: heat_map for heat_map in record.heat_maps}
        heat_maps = [maps[phrase.text] for phrase in record.phrases]
        boxes = np.array([region.box_xywh_px for region in record.regions], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return Located(
            phrases=texts,
            heat_maps=np.stack([heat_map.values for heat_map in heat_maps]),
            similarities=np.array([heat_map.similarity for heat_map in heat_maps], np.float32),
            presences=np.array(maker.presences_of(record, maker.groups_of(record)), np.float32),
            faults=tuple(heat_map.fault for heat_map in heat_maps),
            phrase_indices=np.array([region.phrase_index for region in record.regions], np.int64),
            boxes_xyxy_px=boxes,
            scores=np.array([region.score for region in record.regions], np.float32),
            regions=record.regions,
            size_hw=(record.height_px, record.width_px),
            shift_cells=heat_maps[0].shift_cells,
            _content=content,
            _limits=self._limits,
        )


def _content(image: Any) -> tuple[str, bytes]:
    """Return name and encoded image.

    Raise InputError for other objects and for files that cannot be read.
    """
    if isinstance(image, (bytes, bytearray, memoryview)):
        return IN_MEMORY, bytes(image)
    if isinstance(image, (str, os.PathLike)):
        try:
            with open_file(absolute(os.fspath(image))) as file:
                return os.fspath(image), file.read()
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {image}: {getattr(error, 'strerror', None) or error}") from error
    return IN_MEMORY, encode_pixels(image)
