"""Images that cannot be had while training: never silent."""

from __future__ import annotations

import warnings
from typing import Final, Literal

import torch
from torch.utils.data import get_worker_info

from stages.contract.errors import ConfigError, InputError, RowFault

OnBadImage = Literal["raise", "skip"]

_WORKERS: Final = 1024


class BadImages:
    """Raises, or counts and warns, at a broken or missing image.

    The count is seen by the process that made this and by its DataLoader's workers.
    """

    def __init__(self, policy: OnBadImage) -> None:
        if policy not in ("raise", "skip"):
            raise ConfigError(f"on_bad_image: expected 'raise' or 'skip', got {policy!r}")
        self.policy = policy
        # A number for each worker: adding is not atomic.
        self._counts = torch.zeros(_WORKERS, dtype=torch.int64).share_memory_()

    @property
    def count(self) -> int:
        """Images skipped since this was made, by all workers, each time one came up."""
        return int(self._counts.sum())

    def met(self, where: str, fault: RowFault) -> None:
        """Warns at this process's 1st, 10th, 100th, ... bad image. Raises InputError under the policy "raise"."""
        if self.policy == "raise":
            raise InputError(
                f"{where}: {fault}. Training can go on without such images: on_bad_image='skip'"
            ) from fault
        worker = get_worker_info()
        own = self._counts[(0 if worker is None else worker.id) % _WORKERS]
        own += 1
        number = int(own)
        if number == 10 ** (len(str(number)) - 1):
            so_far = "an image is skipped" if number == 1 else f"{number} images skipped so far, the last"
            warnings.warn(f"{so_far}: {where}: {fault}", RuntimeWarning, stacklevel=2)
