"""What an explainer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stages.contract.records import HeatMap
from stages.model.base import ClipModel


class Explainer(ABC):
    """Heat maps for phrases from a CLIP model.

    config_type  the pydantic model of its settings, with a literal `kind`
    """

    config_type: ClassVar[type[Any]]

    @abstractmethod
    def __init__(self, config: Any, model: ClipModel) -> None:
        """Keep the model; anything that depends on the config is worked out here."""

    @abstractmethod
    def explain(self, rgb: NDArray[np.uint8], phrases: Sequence[Sequence[str]]) -> list[list[HeatMap]]:
        """One heat map for each phrase of each image.

        rgb      uint8 (B, height, width, 3), whole images at the model's input size
        phrases  per image its unique phrase texts, none to many

        Returns per image the maps in the order of its phrases; values float32
        (height / patch, width / patch), >= 0 and finite, not normalised. An image's maps do not
        depend on the other images of the batch.
        """
