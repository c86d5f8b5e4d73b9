"""What the driver decides by itself."""

import pytest

from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.run.decisions import Run
from phrasebox.stages.read import Piece


@pytest.mark.parametrize(
    ("samples", "engine", "setting", "rows"),
    [
        ([5], "ray", None, 1000),
        ([1_000_000], "ray", None, 1000),
        ([900_000, 200_000], "ray", None, 10_000),
        ([900_000, 200_000], "inline", None, 1000),
        ([900_000, 200_000], "ray", 70, 70),
        ([5], "inline", 70, 70),
        ([None] * 1000, "ray", None, 1000),
        ([None] * 1001, "ray", None, 10_000),
    ],
)
def test_shards_of_a_large_input_on_ray_are_large(samples, engine, setting, rows) -> None:
    """Tars do not say how many samples they have."""
    pieces = [Piece(url=f"{n}.tar", name=f"{n}.tar", samples=count) for n, count in enumerate(samples)]
    values = {
        "input": {"path": "tars.parquet"},
        "engine": {"kind": engine},
        "output": {"path": "out", "rows_per_file": setting},
    }
    parts = dict.fromkeys(("reader", "input_pieces", "source", "steps", "identity"))
    run = Run(config=RunConfig.model_validate(values), pieces=pieces, **parts)  # type: ignore[arg-type]
    assert run.rows_per_file == rows
