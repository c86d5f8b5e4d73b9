"""The outputs of frozen networks in an image tower: each image is computed once, for all epochs, trainings and scores.

A network that does not learn, and before which nothing learns, gives an image the same output
in every step. `store_outputs` lets an `OutputStore` answer for it in the tower.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from phrasebox.stages.contract.errors import ConfigError, OutputError
from phrasebox.stages.files.storage import replacing
from phrasebox.stages.model.towers.tower import Tower


class OutputStore:
    """The outputs of a network as files, one for each input; only those of new inputs are computed.

    Outputs are rounded to float16 where this holds their values, whether computed or read, so
    that a training ends with the same weights however many of them were there.

    Args:
        compute: The network's pass in evaluation mode, (B, ...) -> (B, ...), each row by itself.
        folder: Folder of the files, which are named by the hash of the input.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], folder: Path) -> None:
        self.compute = compute
        self.folder = folder

    def __call__(self, x: Tensor) -> Tensor:
        """Return the network's outputs. Raise ConfigError if weights before it learn, and OutputError."""
        if x.requires_grad:
            raise ConfigError(
                f"no output of {self.folder.name.rpartition('-')[0]} can be stored, since weights before it learn",
                key="frozen_outputs",
            )
        rows = x.detach().float().cpu().numpy()
        paths = [
            self.folder / f"{hashlib.sha256(row.tobytes()).hexdigest()[:32]}.safetensors" for row in rows
        ]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        if missing:
            with torch.no_grad():
                outputs = self.compute(x[missing]).float().cpu().contiguous()
            for number, output in zip(missing, outputs, strict=True):
                self._write(paths[number], output)
        return torch.stack([load_file(path)["output"] for path in paths]).to(x.device, x.dtype)

    def _write(self, path: Path, output: Tensor) -> None:
        half = output.half()
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(save({"output": half if half.isfinite().all() else output}))
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}", key="frozen_outputs") from error


def store_outputs(tower: Tower, names: Iterable[str], folder: Path, precision: torch.dtype) -> None:
    """Let the networks of a tower with these names, as in open_clip's model, store their outputs.

    Networks with other weights or in another precision have other files. Raise ConfigError if
    no name is that of a network in the tower's trunk.
    """
    body: Any = getattr(tower, "trunk", None)
    body = getattr(body, "body", body)
    trunk = getattr(body, "__self__", body)  # of a method such as timm's `forward_features`
    parts = dict(trunk.named_modules()) if isinstance(trunk, nn.Module) else {}
    places = {name: name.removeprefix("visual.").removeprefix("trunk.") for name in names}
    networks = {name: parts[place] for name, place in places.items() if place in parts}
    if not networks:
        raise ConfigError(
            "stores the outputs of networks inside the trunk of an image tower of timm or a ResNet, such as "
            f"visual.trunk.features; there is none among {', '.join(places) or 'no names'}",
            key="frozen_outputs",
        )
    for name, network in networks.items():
        digest = hashlib.sha256(str(precision).encode())
        for key, weight in network.state_dict().items():
            digest.update(key.encode())
            digest.update(weight.float().cpu().numpy().tobytes())
        store = folder / f"{name}-{digest.hexdigest()[:16]}"
        try:
            store.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {store}: {error.strerror}", key="frozen_outputs"
            ) from error
        network.forward = OutputStore(network.forward, store)


def names_in(folder: Path) -> list[str]:
    """Return the names of the networks whose outputs a folder holds."""
    return sorted({path.name.rpartition("-")[0] for path in folder.glob("*-*")})
