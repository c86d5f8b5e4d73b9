"""What any number of images takes on any machine, by what a sample of them took."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from pipeline.plan.sample import Costs

RAY_CORES: Final = 0.1
"""Cores that Ray's own processes keep busy while a run lasts, however little it does: the loops of the driver, the
raylet and the servers of state, statistics and logs, and the ledger. Measured on 2 cores of an AMD EPYC:
configs/README.md, "How many workers one driver feeds"."""

RAY_BATCH_S: Final = 0.12
"""Seconds of a core that these and the workers take to hand a batch of records on from step to step, beside making
tables of records, which the sample shows. Measured there, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a run would take place.

    Attributes:
        cores: CPU cores of all nodes.
        workers: Model workers, where the model computes on CPUs.
        gpus: Of all nodes; 0 leaves the model to the cores.
        gpu_rate: Images a second of one GPU; None where it is not known.
        start_s: Seconds until the model has answered the first images.
        first: How many these are.
        end_s: Seconds from the last image to the end, however many there are.
        last_file: The most rows that are cut and written only when the model has answered the last of them.
        late_workers: Model workers that start only when images wait for them.
        own_cores: Cores that the engine's own processes keep busy, whatever the work.
        own_s: Seconds of a core that they take for each image.
        core_price: Of a core for an hour; None where nobody asked.
        gpu_price: The same of a GPU.
    """

    cores: int
    workers: int
    gpus: int = 0
    gpu_rate: float | None = None
    start_s: float = 0.0
    first: int = 0
    end_s: float = 0.0
    last_file: int = 0
    late_workers: int = 0
    own_cores: float = 0.0
    own_s: float = 0.0
    core_price: float | None = None
    gpu_price: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run would take.

    Attributes:
        images: Of the input.
        seconds: From the command to the last row.
        rate: Images a second between start and end.
        limit: What it is that does not allow more: "cores", "model workers" or "GPUs".
        core_hours: Hours of cores that are reserved for the run.
        gpu_hours: The same of GPUs.
        cores_per_gpu: Cores that keep one GPU busy; None without GPUs.
        disk_bytes: Of the dataset.
        memory_bytes: Of all model workers, each with the other stages beside it.
        texts: Different phrases to expect in all.
        price: In the currency of the prices; None where none is given.
    """

    images: int
    seconds: float
    rate: float
    limit: str
    core_hours: float
    gpu_hours: float
    cores_per_gpu: float | None
    disk_bytes: float
    memory_bytes: float
    texts: float
    price: float | None


def texts_in(costs: Costs, images: float) -> float:
    """Different phrases to expect in a number of images, by Heaps' law: they grow with a power of that number.

    The power is what half of the sample and all of it tell, 0 to 1.
    """
    if not costs.texts:
        return 0.0
    power = min(1.0, max(0.0, math.log2(costs.texts / max(1, costs.half_texts))))
    return float(costs.texts * (images / costs.images) ** power)


def forecast(costs: Costs, images: int, machine: Machine) -> Forecast:
    """What a number of images takes.

    Every worker embeds the phrases that are new to it. Cores are shared: what one step does not use, another one does,
    except at the end, when one core has the rows of the last file to itself.

    Args:
        costs: What an image takes.
        images: How many there are.
        machine: Where.

    Raises:
        ValueError: There are GPUs, and it is not known how fast they are.
    """
    beside = sum(seconds for step, seconds in costs.steps.items() if step != costs.explain)
    beside += machine.own_s
    cores = machine.cores - machine.own_cores
    own = images / machine.workers
    explain = costs.steps[costs.explain] + costs.text_s * texts_in(costs, own) / own
    if machine.gpus:
        if machine.gpu_rate is None:
            raise ValueError("expected the images a second of a GPU")
        limits = {"GPUs": machine.gpus * machine.gpu_rate, "cores": cores / beside}
    else:
        limits = {"cores": cores / (beside + explain), "model workers": machine.workers / explain}
    limit = min(limits, key=lambda name: limits[name])
    late = machine.late_workers * costs.ready_s / machine.cores
    last = min(images, machine.last_file) * costs.last_s * (1 - 1 / machine.cores)
    seconds = machine.start_s + max(0, images - machine.first) / limits[limit] + late + last + machine.end_s
    core_hours, gpu_hours = (count * seconds / 3600 for count in (machine.cores, machine.gpus))
    prices = [
        price * hours
        for price, hours in ((machine.core_price, core_hours), (machine.gpu_price, gpu_hours))
        if price is not None
    ]
    return Forecast(
        images=images,
        seconds=seconds,
        rate=limits[limit],
        limit=limit,
        core_hours=core_hours,
        gpu_hours=gpu_hours,
        cores_per_gpu=machine.gpu_rate * beside if machine.gpus and machine.gpu_rate is not None else None,
        disk_bytes=costs.bytes * images,
        memory_bytes=float(costs.memory_bytes * (machine.gpus or machine.workers)),
        texts=texts_in(costs, images),
        price=sum(prices) if prices else None,
    )
