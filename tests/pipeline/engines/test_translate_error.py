"""What the driver says of an error that Ray carried."""

from pathlib import Path

import pytest
from ray.data._internal.util import _annotate_exception_with_retry_context

from pipeline.engines.ray_cluster import translate_error
from stages.contract.errors import ConfigError, PhraseboxError, WeightsError


@pytest.mark.parametrize("kind", [ConfigError, WeightsError])
def test_an_error_of_a_worker_is_told_without_ray_s_advice(kind: type[PhraseboxError], tmp_path: Path) -> None:
    carried = _annotate_exception_with_retry_context(
        kind("model.weights: no file"),
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
    assert str(told) == "model.weights: no file"
