"""What the driver says of an error that Ray carried."""

from pathlib import Path

import pytest
from ray import exceptions
from ray.data._internal.util import _annotate_exception_with_retry_context

from phrasebox.pipeline.run.engines.ray_cluster import translate_error
from phrasebox.stages.contract.errors import ConfigError, PhraseboxError, WeightsError, WorkerCodeMismatch


@pytest.mark.parametrize("kind", [ConfigError, WeightsError])
def test_an_error_of_a_worker_is_told_without_ray_s_advice(
    kind: type[PhraseboxError], tmp_path: Path
) -> None:
    carried = _annotate_exception_with_retry_context(
        kind("no file", key="model.weights"),
        description="apply UDF transform",
        attempts=1,
        max_attempts=1,
        total_backoff_s=0.0,
        exception_str="",
    )
    assert "DataContext" in str(carried)
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = carried
    told = translate_error(wrapped, tmp_path)
    assert type(told) is kind
    assert (str(told), told.key) == ("model.weights: no file", "model.weights")


def test_a_node_without_the_package_of_a_kind_is_one_line(tmp_path: Path) -> None:
    late = exceptions.RaySystemError("System error: No module named 'mine.explainer'", "traceback")
    told = translate_error(late, tmp_path)
    assert type(told) is WorkerCodeMismatch
    assert (
        str(told)
        == "a worker lacks the package mine: install it on every node, or set engine.ship_code=true"
    )
