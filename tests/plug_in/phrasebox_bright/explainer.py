"""Heat where an image is bright: a baseline that does not look at the phrase."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from phrasebox.extend import Explainer, ExplainerConfig, Maps


class BrightConfig(ExplainerConfig):
    kind: Literal["bright"] = "bright"
    affinity: Literal["none"] = Field(
        "none", description="There are no tokens that heat could be shared by."
    )
    floor: float = Field(0.2, ge=0, lt=1, description="Brightness that gives no heat.")


class Bright(Explainer[BrightConfig]):
    config_type = BrightConfig
    cost = "forward"
    at_cells = True

    @torch.no_grad()
    def maps(self, rgb: torch.Tensor) -> Maps:
        tower = self.model.tower
        rows, columns = tower.grid_of(rgb)
        brightness = F.adaptive_avg_pool2d(rgb.float().mean(dim=3)[:, None] / 255, (rows, columns))
        values = F.relu(brightness.flatten(2) - self.config.floor)
        return Maps(
            heat=lambda texts: values.expand(-1, texts.shape[1], -1), embedding=tower.encode(rgb).float()
        )
