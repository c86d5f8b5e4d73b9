"""How many workers a run starts, and on which device, by what Ray says of the nodes."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from pipeline.config import EngineConfig
from pipeline.engines.ray_cluster import OTHER_WORKERS, Pools, choose_pools
from pipeline.engines.ray_data import _on_device
from pipeline.summary import Display, Report
from stages.contract.errors import ConfigError, ResourceError
from stages.explain.stage import ExplainStage, ExplainStageConfig
from stages.shared.model.config import ModelConfig
from stages.shared.model.describe import describe
from tests.build.datasets import Json

CLUSTER = "head:6379"


def nodes(count: int = 1, **resources: float) -> list[Json]:
    """As `ray.nodes()` tells of them, with one that is gone."""
    gone = {"Alive": False, "Resources": {"CPU": 999.0, "GPU": 99.0}}
    return [
        gone,
        *({"Alive": True, "Resources": {"node:10.0.0.1": 1.0, **resources}} for _ in range(count)),
    ]


def pools(
    nodes: list[Json],
    *,
    device: Any = "auto",
    threads: int | None = None,
    cores: int | None = None,
    **engine: Any,
) -> Pools:
    return choose_pools(EngineConfig(**engine), device, threads, nodes, cores)


def test_on_this_machine_the_cores_are_divided_among_at_most_eight_model_workers() -> None:
    small = pools(nodes(CPU=8.0), cores=2)
    assert (small.min_workers, small.max_workers, small.threads, small.device, small.note) == (
        1,
        2,
        1,
        "cpu",
        "",
    )
    large = pools(nodes(CPU=32.0), cores=32)
    assert (large.min_workers, large.max_workers, large.threads) == (4, 8, 4), "half of them at first"
    assert pools(nodes(CPU=32.0), cores=32, explain_workers=8).min_workers == 8
    assert pools(nodes(CPU=32.0), cores=32, threads=3).threads == 3


def test_the_cores_of_a_cluster_are_counted_not_the_drivers() -> None:
    big = pools(nodes(10, CPU=64.0), address=CLUSTER)
    assert (big.min_workers, big.max_workers, big.threads) == (80, 80, 8)
    assert big.captions == 640 - 80 - 4
    single = pools(nodes(CPU=8.0), address=CLUSTER)
    assert single.max_workers == 8 - OTHER_WORKERS, "the other stages hold CPUs as well"
    assert pools(nodes(CPU=4.0), address=CLUSTER).max_workers == 1
    few = pools(nodes(2, CPU=16.0), address=CLUSTER, explain_workers=1)
    assert (few.max_workers, few.threads) == (1, 16), "never more threads than a node has"


def test_each_gpu_gets_a_model_worker_or_as_many_as_share_it() -> None:
    assert pools(nodes(2, CPU=16.0, GPU=4.0), address=CLUSTER).max_workers == 8
    shared = pools(nodes(CPU=16.0, GPU=2.0), gpus_per_worker=0.25, cores=16)
    assert (shared.min_workers, shared.max_workers, shared.gpus, shared.device) == (8, 8, 0.25, "cuda")
    assert pools(nodes(CPU=16.0, GPU=2.0), device="cpu", cores=16).device == "cpu"


@pytest.mark.parametrize(
    ("count", "gpus", "share", "models", "fit"),
    [
        (1, 8.0, 0.3, 1, 24),  # three on each GPU, whose last tenth nobody can take
        (2, 6.0, 4.0, 1, 2),  # one on each node
        (3, 4.0, 0.5, 2, 12),  # as many of the model as of the segmenter
        (1, 0.5, 0.25, 1, 2),
        (8, 1.0, 0.1, 1, 80),
        (2, 1.0, 2.0, 1, 1),  # none fits now: one waits for a larger node
    ],
)
def test_workers_take_whole_shares_of_one_gpu_or_whole_gpus_of_one_node(
    count, gpus, share, models, fit
) -> None:
    cluster = EngineConfig(address=CLUSTER, gpus_per_worker=share)
    pools = choose_pools(cluster, "auto", None, nodes(count, CPU=16.0, GPU=gpus), None, models)
    assert (pools.min_workers, pools.max_workers) == (fit, fit)


def test_a_worker_on_a_gpu_leaves_the_cores_to_others() -> None:
    assert pools(nodes(CPU=16.0, GPU=1.0), cores=16).threads == 2
    assert pools(nodes(CPU=16.0, GPU=8.0), cores=16, gpus_per_worker=0.5).threads == 1
    assert pools(nodes(CPU=16.0, GPU=1.0), cores=16, threads=5).threads == 5, "as the user says"


@pytest.mark.parametrize(
    ("count", "cpus", "gpus", "captions"),
    [
        (1, 16.0, 1.0, 11),
        (1, 128.0, 1.0, 32),  # more would only wait for the GPU
        (1, 128.0, 8.0, 90),  # and 30 CPUs for reading, regions and writing
        (32, 128.0, 8.0, 2880),
        (1, 4.0, 1.0, 1),
    ],
)
def test_captions_get_the_cpus_that_the_gpus_and_the_other_steps_leave(count, cpus, gpus, captions) -> None:
    assert pools(nodes(count, CPU=cpus, GPU=gpus), address=CLUSTER).captions == captions
    assert (
        pools(nodes(count, CPU=cpus, GPU=gpus), address=CLUSTER, gpus_per_worker=0.5).captions <= captions
    )
    assert pools(nodes(count, CPU=cpus, GPU=gpus), address=CLUSTER, cpu_workers=7).captions == 7


def test_model_workers_without_a_gpu_stay_on_the_cpu_where_the_cluster_has_gpus() -> None:
    """All of them would otherwise take the first GPU."""
    none = pools(nodes(CPU=16.0, GPU=8.0), gpus_per_worker=0, cores=16)
    assert (none.device, none.max_workers) == ("cpu", 8)
    with pytest.raises(ConfigError, match=r"without a GPU, but model\.device is cuda"):
        pools(nodes(CPU=16.0, GPU=8.0), gpus_per_worker=0, device="cuda")


def test_a_model_worker_that_gets_a_gpu_computes_on_it_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = ModelConfig(name="demo")
    stage = ExplainStage(ExplainStageConfig(model=config, description=describe(config)))
    assert _on_device(pools(nodes(CPU=16.0), cores=16), stage) is stage
    on_gpu = _on_device(pools(nodes(CPU=16.0, GPU=1.0), cores=16), stage)
    with pytest.raises(ResourceError, match="this worker sees no GPU"):
        on_gpu.setup()


def test_a_cluster_without_a_gpu_yet_is_said() -> None:
    on_cpus = pools(nodes(CPU=16.0), address=CLUSTER)
    assert on_cpus.device == "cpu"
    assert on_cpus.note == (
        "the model runs on CPUs: the cluster has no GPU up now; engine.gpus_per_worker=1 waits for one"
    )
    waits = pools(nodes(CPU=16.0), address=CLUSTER, gpus_per_worker=1, explain_workers="1-8")
    assert (waits.device, waits.min_workers, waits.max_workers) == ("cuda", 1, 8)
    assert waits.note.startswith("the cluster has no GPU up now: model workers wait for nodes with GPUs")
    assert pools(nodes(CPU=16.0), address=CLUSTER, device="cpu").note == "", "it was asked for"
    with pytest.raises(ResourceError, match=r"gpus_per_worker: 0\.5, but Ray finds no GPU on this machine"):
        pools(nodes(CPU=16.0), gpus_per_worker=0.5, cores=16)


def test_a_note_is_shown_once() -> None:
    console = Console(file=StringIO(), width=100)
    report = Report()
    report.note("the model runs on CPUs")
    with Display(console).shown() as display:
        display.update(report)
        display.update(report)
    assert console.file.getvalue().count("the model runs on CPUs") == 1  # type: ignore[attr-defined]
