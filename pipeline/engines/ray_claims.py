"""What runs that were killed still hold of a cluster that outlives them.

Ray Data divides a cluster among the datasets that are being computed: each claims its part from an actor of the whole
cluster, and gives it back at its end. A driver that is killed gives nothing back. Its claim lapses after three minutes
(RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S), and until then the next run believes that it may use what is left: after
two kills nothing, and no shard is written before the last image is through the model.
"""

from __future__ import annotations

import contextlib
from typing import Final

import ray

CLAIMS: Final = ("AutoscalingCoordinator", "AutoscalingCoordinator")
"""Name and namespace of the actor that divides the cluster."""

DATASETS: Final = ("datasets_stats_actor", "_dataset_stats_actor")
"""Of the actor that knows which driver computes which dataset."""

ANSWER_SECONDS: Final = 10


def drop_claims_of_dead_drivers() -> None:
    """Give back what drivers that are dead claimed, whoever started them.

    There is no public way to it. With a Ray in which this is done otherwise, or where one of the two actors is gone
    with its node, nothing is given back, and claims lapse in their time.
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
