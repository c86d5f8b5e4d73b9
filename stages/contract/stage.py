"""The contract of a stage.

1. One answer per input, in order: `len(process(batch)) == len(batch)`. A record with an error
   passes through untouched.
2. `setup()` once per worker (weights, spaCy), `process` many times, `teardown()` once. The
   constructor takes settings and what the driver has read, and stays cheap and picklable.
3. The engine gives a worker its CPUs and GPUs; a stage that needs a device checks in
   `setup` that it got one. The stage decides how many records it takes at once: see
   `Stage.forward_batch_size`.
4. No mutation of inputs, no dependence on neighbours in the batch, no global random state.
5. The same batch twice on one machine gives the same answer.
6. A stage catches only the named exceptions of the library it calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from phrasebox.stages.contract.records import Record

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwards:
    """Forward passes of a stage that holds a model.

    Attributes:
        images: Images that required a forward pass.
        device: For example "cpu" or "NVIDIA H100 80GB HBM3".
    """

    images: int
    device: str


class Stage(ABC):
    """One step of the pipeline over batches of records. See the module for the contract.

    Attributes:
        name: That of its module or folder in `stages/`; logs, progress and `dataset.json` show it.
    """

    name: ClassVar[str]

    def computing(self, **settings: str) -> Self:
        """Return the same stage, not set up, with other settings of its model: `device`, `precision`."""
        return self

    def setup(self) -> None:
        """Load what `process` needs. Called once per worker, before the first batch."""

    def forward_batch_size(self, device: Device | None = None) -> int:
        """Return how many records the stage takes at once; engines hand it a multiple of this number.

        device: Where the stage will run; None for a stage that was set up, which knows.
        """
        return 1

    def batches_per_call(self, device: Device | None = None) -> int:
        """Return how many such batches a call should hold: the stage can prepare one while it computes another."""
        return 1

    def take_forwards(self) -> Forwards | None:
        """Return the forward passes since the last call; None for a stage without a model."""
        return None

    @abstractmethod
    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Answer every record of the batch, in order."""

    def teardown(self) -> None:
        """Release what `setup` took."""
