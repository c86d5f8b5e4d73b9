"""COCO JSON and text embeddings, for CLIPSelf and other RegionCLIP-style training.

CLIPSelf's `--dataset-type region_clip --train-data SPLIT.json --train-embed-path
text_embeddings.npy`: the row of a category's embedding is the rank of its id, so ids are dense
from 1 and row = id - 1. It takes at most 20 boxes of an image. The embeddings are those of the
dataset's own CLIP model and text templates, of unit length, float32.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from pydantic import Field

from phrasebox.pipeline.dataset.origin import MODEL_KEYS, check_named
from phrasebox.pipeline.export.base import CategoryField, ExportJob, FormatConfig, WithImages
from phrasebox.pipeline.export.coco import CocoLayout
from phrasebox.stages.contract.errors import InputError
from phrasebox.stages.model.config import ModelConfig

_TEXTS_AT_ONCE: Final = 512


class ClipselfConfig(FormatConfig):
    """Settings of `clipself`."""

    classes: CategoryField = "phrase"
    images: WithImages = False
    model: ModelConfig | None = Field(
        None, description="The dataset's model, if only the user can name it; by default as stored."
    )


class Clipself(CocoLayout):
    """COCO with embeddings."""

    summary = "SPLIT.json and text_embeddings.npy from the dataset's CLIP model, for CLIPSelf; this one loads torch"
    masks = "exact as RLE; CLIPSelf trains on boxes"
    next_step = (
        'CLIPSelf: python -m training.main --dataset-type region_clip --train-data "{out}/{split}.json" '
        '--train-embed-path "{out}/text_embeddings.npy" --train-image-root "{images}"'
    )
    config_type = ClipselfConfig
    json_file = "{split}.json"
    image_folder = "images/{split}"

    def __init__(self, config: ClipselfConfig, job: ExportJob) -> None:
        _write_embeddings(job, config.model)  # before any file is opened, since it may fail
        super().__init__(config, job)


def _write_embeddings(job: ExportJob, named_model: ModelConfig | None) -> None:
    """Write the embeddings of all categories.

    Raise InputError if the model has changed since the run, ConfigError if only another user's
    dataset names it, and as `load`.
    """
    # They load torch and open_clip, for this format alone.
    from phrasebox.stages.model.describe import describe  # noqa: PLC0415
    from phrasebox.stages.model.load import load  # noqa: PLC0415
    from phrasebox.stages.model.text_cache import TextCache, templates_of  # noqa: PLC0415

    manifest = job.dataset.manifest
    names = job.categories.names
    if named_model is None:
        check_named(job.dataset, MODEL_KEYS)
    config = named_model or ModelConfig.model_validate(manifest["config"].get("model", {}))
    description = describe(config)
    if description.fingerprint != manifest.get("model_fingerprint"):
        raise InputError("the model's weights are not those that the dataset was made with")
    model = load(description, device=config.device, precision=config.precision, threads=config.threads)
    templates = templates_of(manifest["config"].get("explain", {}).get("templates", ("{}",)))
    # Each category comes once, so no more than a round is kept.
    texts = TextCache(model, templates, max_texts=_TEXTS_AT_ONCE)
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(names), model.embed_dim)}
    with job.folder.file("text_embeddings.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(names), _TEXTS_AT_ONCE):
            embeddings = texts(names[start : start + _TEXTS_AT_ONCE]).cpu().numpy()
            file.write(embeddings.astype("<f4").tobytes())
