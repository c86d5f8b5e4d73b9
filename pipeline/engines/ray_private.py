"""Everything in use that Ray does not promise to keep, as it is in Ray 2.60; pyproject.toml allows no later minor one.

Each entry says where it is in Ray, what uses it, and what a change would do.

- `CheckpointManager` (developer API) in `ray.data.checkpoint.checkpoint_filter`: `WriteOnlyCheckpoint`. The filter of
  finished rows would come back.
- Names of checkpoint notes and shards: `pipeline.output.shards`, `OWN_SHARD` in `pipeline.output.replaced`. Rows
  would be lost or doubled when a run is continued.
- `write_parquet` follows `row_group_size` only without `min_rows_per_file`: `ray_data`. Row groups of another size.
- The text of a warning: `POOL_WARNING`. A warning on the terminal.
- The actors `CLAIMS` and `DATASETS`, and `ray._private.state.jobs`: `drop_claims_of_dead_drivers`. A run would wait
  three minutes for what killed runs hold.
- Environment variables: `RAY_ENVIRONMENT` in `pipeline.engines`. Messages on the terminal.

tests/architecture/test_private_apis.py has a canary for each.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import ray
from ray.data.checkpoint.checkpoint_filter import CheckpointManager

POOL_WARNING: Final = "The minimum number of concurrent actors"
"""Ray Data warns so of an input with fewer batches than there are model workers. Nobody needs to act on it."""

CLAIMS: Final = ("AutoscalingCoordinator", "AutoscalingCoordinator")
"""Name and namespace of the actor that divides a cluster among datasets."""

DATASETS: Final = ("datasets_stats_actor", "_dataset_stats_actor")
"""Name and namespace of the actor that knows which driver computes which dataset."""

ANSWER_SECONDS: Final = 10


class WriteOnlyCheckpoint(CheckpointManager):  # type: ignore[misc]  # ray is untyped
    """Ray Data's checkpoint without its filter of finished rows.

    The filter is a pool of actors behind the read tasks. It gets every row as a table only to drop it, holds CPUs and
    a gigabyte, and can hang on a small machine. The read tasks leave these rows out themselves.
    """

    def load_checkpoint(self, *_: Any, **__: Any) -> tuple[None, int]:
        """Return nothing to filter by."""
        return None, 0


def drop_claims_of_dead_drivers() -> None:
    """Give back what drivers that were killed still hold of a cluster that outlives them, whoever started them.

    Ray Data divides a cluster among the datasets that are being computed: each claims its part from an actor of the
    cluster, and gives it back at its end. The claim of a killed driver lapses only after three minutes
    (RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S). Until then the next run uses only what is left, which is nothing
    after two kills: it writes no shard before the last image has been through the model.

    There is no public way to do this. Where one of the two actors is gone with its node, nothing is given back.
    """
    try:
        claims, datasets = (ray.get_actor(name, namespace=namespace) for name, namespace in (CLAIMS, DATASETS))
    except ValueError:  # nobody has computed a dataset on this cluster
        return
    with contextlib.suppress(ray.exceptions.RayError, AttributeError, KeyError):
        dead = {job["JobID"] for job in ray._private.state.jobs() if job["IsDead"]}
        begun = ray.get(datasets.get_datasets.remote(), timeout=ANSWER_SECONDS)
        left = [name for name, one in begun.items() if one["end_time"] is None and one["job_id"] in dead]
        ray.get([claims.cancel_request.remote(f"data-{name}") for name in left], timeout=ANSWER_SECONDS)
