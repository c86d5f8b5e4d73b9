"""The engines against each other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.bench.timing import line
from pipeline.config import RunConfig
from pipeline.engines import cores_here, engine
from pipeline.graph import build_graph
from pipeline.output.folder import DatasetFolder
from pipeline.scenes import write_scenes
from pipeline.summary import Report
from stages.read import plan_shards


def engines(scenes: int = 1000) -> list[dict[str, Any]]:
    """Images per second of the ray engine over those of the inline engine, on the same cores, after start-up.

    Both run the embedded model over drawn scenes. The clock starts when the first model batch is done and stops with
    the last row. Only images that the model had not seen at the start count, so that what an engine prepared before
    does not help it.
    """
    speeds, starts = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_scenes(root / "scenes", scenes, 0)
        for kind in ("inline", "ray"):
            captions, images = root / "scenes/captions.jsonl", root / "scenes/images"
            source = {"kind": "jsonl", "path": str(captions), "image_root": str(images)}
            output_config = {"path": str(root / kind), "rows_per_file": 250}
            config = RunConfig.model_validate(
                {"input": source, "model": {"name": "demo"}, "engine": {"kind": kind}, "output": output_config}
            )
            output, report, graph = DatasetFolder(config.output.path), Report(), build_graph(config)
            marks: list[tuple[float, int]] = []

            def show(report: Report, marks: list[tuple[float, int]] = marks) -> None:
                explained = report.stages["explain"].records if "explain" in report.stages else 0
                if not marks and explained:
                    marks.append((report.wall_time_s, explained))
                if len(marks) == 1 and report.done == scenes:
                    marks.append((report.wall_time_s, scenes))

            with output.locked():
                output.begin(output.look(config, graph.fingerprint))
                engine(kind)(graph, plan_shards(graph.reader), output, config, report, show)
            (start, seen), (end, _) = marks
            speeds[kind], starts[kind] = (scenes - seen) / (end - start), start
    machine = f"embedded model, {cores_here()} cores"
    return [
        line("inline_images_per_second", speeds["inline"], "images/s", machine),
        line("ray_images_per_second", speeds["ray"], "images/s", machine),
        line("ray_vs_inline", speeds["ray"] / speeds["inline"], "ratio", "inline images/s, same cores, after start-up"),
        line("ray_start_seconds", starts["ray"], "s", f"inline {starts['inline']:.1f} s, until the first model batch"),
    ]
