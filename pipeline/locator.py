"""Find phrases in one image from Python, for example in a notebook:

    import open_clip
    from phrasebox.pipeline.locator import Locator

    model, _, _ = open_clip.create_model_and_transforms("ViT-B-16", pretrained="laion2b_s34b_b88k")
    located = Locator.from_open_clip(model)("photo.jpg", ["a red car", "two dogs"])
    located  # shows the picture; located.heat_maps, .boxes_xyxy_px, .masks and .scores are arrays
    for region in located:
        print(region.phrase, region.score, region.box_xyxy_px)

An image goes through the stages of a run. As in a run, the model embeds "a red car" without its
article, as "red car"; with `explain.variant: authors` it embeds texts as typed. The phrases of a
call are questions and no caption: each is judged by itself, and half of them are expected to name
nothing in the image (`QUESTION_SHARE`). With `regions.absent_share` and `regions.exponent` of a run, the
result equals the row that this run writes for the same phrases if all its captions are their images' own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image
from pydantic import BaseModel

from phrasebox.pipeline.config.run_config import ExplainCommandConfig, RunConfig
from phrasebox.pipeline.located import Located
from phrasebox.pipeline.pictures import encode_lossless
from phrasebox.pipeline.run.generic import reject_generic
from phrasebox.pipeline.run.stage_calls import run_stages
from phrasebox.pipeline.run.steps import build_steps
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.contract.records import ImageRef, Phrase, Record, Sample
from phrasebox.stages.contract.values import Json, Rgb
from phrasebox.stages.files.storage import absolute, open_file
from phrasebox.stages.images.faults import DecodeLimits
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.phrases.filters import normalise, tidy_words

if TYPE_CHECKING:
    from phrasebox.stages.model.clip import ClipModel

IN_MEMORY: Final = "image"  # the name of an image without a path in messages

QUESTION_SHARE: Final = 0.5
"""The share of absent phrases that is expected of questions, of which nothing says that the image shows them.

Measured with `photo` on photographs of Flickr8k's dev split, each question by itself: 240 questions
for six objects that 40 photographs do not show, and 1,372 phrases that people marked in 150 photographs.

    share   absent: with a region   present: with a region   box recall
    0.05    88 %                    99 %                     0.405
    0.2     44 %                    96 %                     0.397
    0.5     11 %                    84 %                     0.370
"""

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
        if steps.has_open_share:
            steps = steps.expecting(QUESTION_SHARE)
        self._limits = DecodeLimits(max_pixels=config.images.max_pixels, max_bytes=config.images.max_bytes)
        self._takes_texts_as_typed = config.explain.takes_texts_as_typed
        self._phrases_stage = steps.before[0]
        self._phrases_stage.setup()
        # The stage of the regions is not set up: that would leave OpenCV one thread in the whole
        # process.
        self._first_stages = (steps.prepare_stage, steps.model_stage)
        self._regions_stage = steps.regions_stage
        steps.model_stage.setup()
        name = config.model.label if loaded is None else loaded.name
        self._description = (
            f"{name} by {steps.explainer.kind} on {steps.model_stage.take_forwards().device}"
        )

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
        image_ref = ImageRef(file_name=name, content=content)
        sample = Sample(sample_id=name, source=name, captions=("\n".join(texts),), image=image_ref)
        from phrasebox.stages.model.device import float32_grads  # noqa: PLC0415  it loads torch

        with float32_grads():
            records = [replace(Record.start(sample), phrases=self._phrases(texts))]
            (explained,) = run_stages(self._first_stages, records)
            if explained.error is not None:
                raise InputError(str(explained.error))
            # As a caption the phrases would all be absent together, or all present.
            (record,) = run_stages([self._regions_stage], [replace(explained, caption_presences=())])
        maker = self._regions_stage.maker
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

    def _phrases(self, texts: Sequence[str]) -> tuple[Phrase, ...]:
        """Return each text as one phrase, normalised as the phrases of captions are, but never empty, or as typed.

        The stage of phrases finds head and number in a caption of these words; if it finds
        another phrase, the text names one object. The texts are the lines of one caption, so that
        "a man" and "a person" get two answers.
        """
        samples = [
            Sample(sample_id=str(index), source="", captions=(text,)) for index, text in enumerate(texts)
        ]
        records = self._phrases_stage.process([Record.start(sample) for sample in samples])
        phrases = []
        line_start = 0
        for text, record in zip(texts, records, strict=True):
            (code,) = record.caption_languages or ("en",)
            words = normalise(text, code) or tidy_words(text)
            whole = Phrase(text=words, caption_index=0, start=0, end=len(text), head=words, language=code)
            phrase = next((phrase for phrase in record.phrases if phrase.text == words), whole)
            embedded = tidy_words(text) if self._takes_texts_as_typed else words
            start = line_start + phrase.start
            phrases.append(replace(phrase, text=embedded, start=start, end=line_start + phrase.end))
            line_start += len(text) + 1
        return tuple(phrases)


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
    if isinstance(image, Image.Image):
        return IN_MEMORY, encode_lossless(image)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"expected a path, bytes, a Pillow image or an array as image, got a {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"expected uint8 (height, width, 3) as image, got {image.dtype} {image.shape}")
    return IN_MEMORY, encode_lossless(image)
