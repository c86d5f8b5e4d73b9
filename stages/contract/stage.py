"""The contract of a stage.

1. One answer per input, in order: `len(process(batch)) == len(batch)`. A record with an error
   passes through untouched.
2. `setup()` once per worker (weights, spaCy), `process` many times, `teardown()` once. The
   constructor takes only the stage's config and stays cheap and picklable.
3. What a worker is given (CPUs, GPUs) is the engine's business; a stage that needs a device checks in
   `setup` that it got one.
4. No mutation of inputs, no dependence on neighbours in the batch, no global random state.
5. The same batch twice on one machine gives the same answer.
6. A stage catches only the named exceptions of the library it calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from stages.contract.records import Record


class Stage(ABC):
    """One step of the pipeline over batches of records. See the module for the contract."""

    name: ClassVar[str]
    """Folder name under `stages/`; shown in logs, progress and `dataset.json`."""

    def setup(self) -> None:
        """Load what `process` needs. Called once per worker, before the first batch."""

    @abstractmethod
    def process(self, batch: Sequence[Record]) -> list[Record]:
        """Answer every record of the batch, in order."""

    def teardown(self) -> None:
        """Release what `setup` took."""
