"""How many workers a run starts, and on which device, by what Ray says of the nodes."""

from typing import Any

import pytest

from phrasebox.pipeline.config.run_config import EngineConfig
from phrasebox.pipeline.run.engines.ray_cluster import OTHER_WORKERS, Pools, choose_pools
from phrasebox.pipeline.run.engines.ray_data import _on_device
from phrasebox.stages.contract.errors import ConfigError, ResourceError
from phrasebox.stages.explain.stage import ExplainStage, ExplainStageConfig
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.model.describe import describe
from tests.build.cases import cases
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


@cases(
    ("nodes", "settings", "chosen"),
    {
        "small machine": (
            nodes(CPU=8.0),
            {"cores": 2},
            {"min_workers": 1, "max_workers": 2, "threads": 1, "device": "cpu", "note": ""},
        ),
        "half of eight workers at first": (
            nodes(CPU=32.0),
            {"cores": 32},
            {"min_workers": 4, "max_workers": 8, "threads": 4},
        ),
        "a cluster's own cores": (
            nodes(10, CPU=64.0),
            {"address": CLUSTER},
            {"min_workers": 80, "max_workers": 80, "threads": 8, "captions": 640 - 80 - 4},
        ),
        "CPUs of the other stages": (
            nodes(CPU=8.0),
            {"address": CLUSTER},
            {"max_workers": 8 - OTHER_WORKERS},
        ),
        "never more threads than a node has": (
            nodes(2, CPU=16.0),
            {"address": CLUSTER, "explain_workers": 1},
            {"max_workers": 1, "threads": 16},
        ),
        "a worker for a GPU": (nodes(2, CPU=16.0, GPU=4.0), {"address": CLUSTER}, {"max_workers": 8}),
        "shared GPUs": (
            nodes(CPU=16.0, GPU=2.0),
            {"cores": 16, "gpus_per_worker": 0.25},
            {"min_workers": 8, "max_workers": 8, "gpus": 0.25, "device": "cuda"},
        ),
        "the cores beside a GPU are the others'": (nodes(CPU=16.0, GPU=1.0), {"cores": 16}, {"threads": 2}),
        "CPUs by the user": (nodes(CPU=16.0, GPU=2.0), {"cores": 16, "device": "cpu"}, {"device": "cpu"}),
        "no share of a GPU": (
            nodes(CPU=16.0, GPU=8.0),
            {"cores": 16, "gpus_per_worker": 0},
            {"max_workers": 8, "device": "cpu"},
        ),
        "captions that one GPU needs": (nodes(CPU=128.0, GPU=1.0), {"address": CLUSTER}, {"captions": 32}),
        "CPUs for reading and writing": (nodes(CPU=128.0, GPU=8.0), {"address": CLUSTER}, {"captions": 90}),
        "at least one for captions": (nodes(CPU=4.0, GPU=1.0), {"address": CLUSTER}, {"captions": 1}),
        "captions by the user": (
            nodes(CPU=128.0, GPU=1.0),
            {"address": CLUSTER, "cpu_workers": 7},
            {"captions": 7},
        ),
    },
)
def test_the_sizes_of_pools(nodes: list[Json], settings: Json, chosen: Json) -> None:
    sizes = pools(nodes, **settings)
    assert {name: getattr(sizes, name) for name in chosen} == chosen


@pytest.mark.parametrize(
    ("count", "gpus", "share", "models", "fit"),
    [
        (1, 8.0, 0.3, 1, 24),  # three on each GPU, whose last tenth nobody can take
        (2, 6.0, 4.0, 1, 2),  # one on each node
        (3, 4.0, 0.5, 2, 12),  # as many of the model as of the segmenter
        (2, 1.0, 2.0, 1, 1),  # none fits now: one waits for a larger node
    ],
)
def test_workers_take_whole_shares_of_one_gpu_or_whole_gpus_of_one_node(
    count, gpus, share, models, fit
) -> None:
    cluster = EngineConfig(address=CLUSTER, gpus_per_worker=share)
    pools = choose_pools(cluster, "auto", None, nodes(count, CPU=16.0, GPU=gpus), None, models)
    assert (pools.min_workers, pools.max_workers) == (fit, fit)


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
    with pytest.raises(ConfigError, match=r"without a GPU, but model\.device is cuda"):
        pools(nodes(CPU=16.0, GPU=8.0), gpus_per_worker=0, device="cuda")
    with pytest.raises(ResourceError, match=r"gpus_per_worker: 0\.5, but Ray finds no GPU on this machine"):
        pools(nodes(CPU=16.0), gpus_per_worker=0.5, cores=16)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(1, 1), (20_000, 9), (10**6, 32), (None, 32)],
    ids=["few", "some", "many", "unknown"],
)
def test_gpus_do_not_wait_for_caption_workers_of_a_large_input(samples: int | None, expected: int) -> None:
    machine = nodes(CPU=64.0, GPU=1.0)
    assert pools(machine).first_captions(samples, 256) == expected
    assert pools(nodes(CPU=64.0), cores=32).first_captions(samples, 256) == 1
