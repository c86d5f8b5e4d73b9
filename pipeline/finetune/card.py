"""The card of a tuned model: what it was made of, for who finds it later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.finetune.config import FinetuneConfig
from pipeline.finetune.material import TuningData
from stages.shared.model.recognise import Described


def card_of(
    config: FinetuneConfig,
    described: Described,
    material: TuningData,
    lines: Sequence[Mapping[str, Any]],
    steps: int,
) -> str:
    """README.md of a tuned model.

    Args:
        config: all settings.
        described: of the model that training began with.
        material: what it learned from.
        lines: of the log.
        steps: of the whole training.
    """
    names = [name for name in (lines[-1] if lines else {}) if name not in ("step", "learning_rate")]
    shown = [lines[0], *lines[1:-1:10], lines[-1]] if len(lines) > 1 else list(lines)
    table = "\n".join(
        f"| {line['step']:,} | " + " | ".join(f"{line[name]:.3f}" for name in names) + " |" for line in shown
    )
    mixed = (
        ""
        if config.interpolate == 1
        else f", mixed with {1 - config.interpolate:.0%} of the weights that it began with"
    )
    settings = json.dumps(config.decides(), indent=1)
    return f"""# {described.name}, fine-tuned by recipe {config.recipe.kind}

Fine-tuned by phrasebox for {steps:,} steps of {config.batch_size} images on {material.images:,} images of the dataset
`{config.data.path}`{mixed}. open_clip loads it, and so does phrasebox: `--model FOLDER`. Its licence follows from those
of the model that it began with and of the images.

| step | {" | ".join(names)} |
|{"---|" * (len(names) + 1)}
{table}

```json
{settings}
```
"""
