"""open_clip's module of a model: built without numbers to be checked, or with its weights."""

from __future__ import annotations

import logging
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import open_clip
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from phrasebox.stages.contract.errors import ConfigError, WeightsError, one_line, with_type
from phrasebox.stages.contract.values import Json
from phrasebox.stages.model import hub
from phrasebox.stages.model.checkpoints.layouts import convert_to_open_clip
from phrasebox.stages.model.checkpoints.state import State, read_state
from phrasebox.stages.model.config import ModelDescription, about
from phrasebox.stages.model.dual_encoder import open_dual_encoder
from phrasebox.stages.model.towers.from_open_clip import Model

# The smallest tower that open_clip can build, which that of a SigLIP replaces.
_SMALLEST: Final = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1}

_log = logging.getLogger(__name__)


def module_of(description: ModelDescription) -> Model:
    """Return the module with its weights, float32, in evaluation mode, even if it cannot be explained.

    It is open_clip's, or a `DualEncoder`. Raise ConfigError if it cannot be built, WeightsError
    for missing or damaged weights.
    """
    if description.pretrained is not None:
        return _open_tag(description, description.pretrained)
    if description.dual_encoder is not None and description.weights is not None:
        with about(description.key):
            return open_dual_encoder(description.dual_encoder, read_state(description.weights))
    with WithoutRandomNumbers():
        model = build_module(description)
    with about(description.key):
        state = {} if description.weights is None else read_state(description.weights)
        load_into(model, convert_to_open_clip(state, description.layout))
    _log.info("%s: the weights are %s's", description.name, description.layout)
    return model.eval()


def _open_tag(description: ModelDescription, tag: str) -> Model:
    path = hub.fetch(description.name, tag)
    quick = bool(description.architecture.get("quick_gelu"))
    try:
        with WithoutRandomNumbers():
            model = open_clip.create_model(
                description.name, pretrained=str(path), precision="fp32", force_quick_gelu=quick
            )
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise WeightsError(
            f"{path}, which was downloaded for {description.name}/{tag}, cannot be loaded "
            f"({with_type(error)}): delete {path.resolve()}, and it is downloaded again"
        ) from error
    return model.eval()


class WithoutRandomNumbers(TorchFunctionMode):
    """Leaves new tensors as memory was where they would be given random numbers: weights follow for all of them.

    torch's generator stays as it is. A ViT-B-32 is built in half of the time.
    """

    def __torch_function__(
        self, function: Any, _: Any, arguments: tuple[Any, ...] = (), options: Json | None = None
    ) -> Any:
        """Call a function of torch, or return its tensor if it draws random numbers."""
        options = options or {}
        if function in _DRAWING:
            return arguments[0] if arguments else options["tensor"]
        return function(*arguments, **options)


_DRAWING: Final = frozenset(
    {
        *(Tensor.normal_, Tensor.uniform_),
        Tensor.erfinv_,  # of uniform numbers, as timm draws from a truncated normal distribution
        *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_),
        *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_),
        *(nn.init.xavier_normal_, nn.init.xavier_uniform_),
    }
)


def build_module(settings: ModelDescription) -> Model:
    """Build open_clip's module with random weights.

    Raise ConfigError if open_clip has no such architecture, WeightsError if a file of its text
    tower is missing.
    """
    architecture = settings.architecture
    arguments = {key: value for key, value in architecture.items() if key != "custom_text"}
    if settings.siglip is not None:
        arguments["vision_cfg"] = _SMALLEST
    elif "timm_model_name" in architecture["vision_cfg"]:
        # This import registers our trunk with timm. It takes time, and only timm's towers need it.
        import phrasebox.stages.model.towers.photo_trunk  # noqa: F401, PLC0415

        # The weights come from our checkpoint: timm would first download those of its own.
        arguments["vision_cfg"] = {**architecture["vision_cfg"], "timm_model_pretrained": False}
    hugging_face = "hf_model_name" in architecture["text_cfg"]
    if hugging_face:
        if find_spec("transformers") is None:
            raise ConfigError("the model's text tower comes from Hugging Face: pip install transformers")
        # The weights come from our checkpoint: open_clip would first download those of the text
        # tower alone.
        arguments["text_cfg"] = {**architecture["text_cfg"], "hf_model_pretrained": False}
    custom = architecture.get("custom_text") or hugging_face
    try:
        model: Model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**arguments)
        if settings.siglip is not None:
            model.visual = _siglip_tower(settings.siglip, architecture["embed_dim"])
    except OSError as error:
        raise WeightsError(f"open_clip could not get the text tower's configuration: {error}") from error
    except Exception as error:  # keys that open_clip does not have, values that make no sense
        raise ConfigError(f"open_clip cannot build this architecture: {one_line(error)}") from error
    return model


def _siglip_tower(trunk: Json, embed_dim: int) -> nn.Module:
    """Build the image tower of a SigLIP of any size as open_clip has it, a `TimmModel`, with random weights.

    open_clip builds such towers by timm's names alone, and those have the exact GELU. SigLIP
    was trained with its approximation by tanh (big_vision, `flax.linen.gelu`), which
    `transformers` computes, too.
    """
    from timm.models.vision_transformer import VisionTransformer  # noqa: PLC0415 - for this tower alone

    options = {key: value for key, value in trunk.items() if key != "norm_eps"}
    with torch.device("meta"):  # the layers of one of timm's SigLIP towers, which are never allocated
        tower: nn.Module = open_clip.timm_model.TimmModel(
            "vit_base_patch16_siglip_224",
            embed_dim,
            image_size=options["img_size"],
            pool="map",
            proj="none",
        )
    norm = partial(nn.LayerNorm, eps=trunk["norm_eps"])
    tower.trunk = VisionTransformer(
        **options, num_classes=0, global_pool="map", class_token=False, norm_layer=norm
    )
    return tower


def load_into(model: Model, state: State) -> None:
    """Give a module the tensors of a checkpoint, which have open_clip's names: nothing else does.

    `describe` calls it for a module on the meta device, where it compares shapes.

    Raise WeightsError if they are those of another model.
    """
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):  # one number, of whatever shape
        number = getattr(model, name, None)
        if name in state and number is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(number.shape)
    try:
        names = model.load_state_dict(state, strict=False, assign=model.logit_scale.is_meta)
    except (
        RuntimeError
    ) as error:  # the first line is a title, and each of the others a tensor of another size
        raise WeightsError(
            f"the weights do not fit the architecture: {str(error).splitlines()[1].strip()}"
        ) from error
    kinds = {"are missing": names.missing_keys, "are not the model's": names.unexpected_keys}
    faults = [
        f"{len(tensors)} tensors {fault}, such as {tensors[0]}"
        for fault, tensors in kinds.items()
        if tensors
    ]
    if faults:
        raise WeightsError(f"the weights do not fit the architecture: {'; '.join(faults)}")
