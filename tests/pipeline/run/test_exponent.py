"""The power of the heat, which the first images of a run decide where no calibration cuts maps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phrasebox.pipeline.calibrate import presence, truth_fit
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run import presence_fit
from phrasebox.pipeline.run.calibration import calibration_basis
from phrasebox.pipeline.run.exponent import MEAN_HEAT, fit_exponent
from phrasebox.stages.contract.errors import ConfigError
from phrasebox.stages.contract.levels import LEVELS, raise_levels
from phrasebox.stages.contract.records import HeatMap
from phrasebox.stages.explain.config import GradEclipConfig
from phrasebox.stages.regions.config import LARGEST_EXPONENT, SMALLEST_EXPONENT, RegionsConfig
from phrasebox.stages.regions.maker import levels_of_map
from tests.build.datasets import manifest_of
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import called, config_of, run_aloud
from tests.pipeline.light import assert_alike, rows_of

FLAT = {"kind": "clip_surgery"}


def maps_of(power: float, count: int = 8) -> list[HeatMap]:
    """Heat of random cells, the flatter the smaller the power."""
    rng = np.random.default_rng(3)
    heats = rng.random((count, 14, 14)).astype(np.float32) ** np.float32(power)
    return [HeatMap(text=str(number), values=heat, similarity=0.3) for number, heat in enumerate(heats)]


def mean_heat(maps: list[HeatMap], exponent: float) -> float:
    levels = [levels_of_map(heat_map, exponent) for heat_map in maps]
    return float(np.mean([heat for heat in levels if heat is not None])) / LEVELS


@pytest.mark.parametrize("power", [1.0, 1.5, 12.0])
def test_the_fitted_power_gives_maps_the_usual_mean_heat(power: float) -> None:
    maps = maps_of(power)
    exponent = fit_exponent(maps)
    assert exponent is not None
    assert (exponent > 1) == (mean_heat(maps, 1.0) > MEAN_HEAT)
    assert mean_heat(maps, exponent) == pytest.approx(MEAN_HEAT, rel=0.02)


def test_a_usual_power_is_1_and_an_extreme_one_has_bounds() -> None:
    assert fit_exponent(maps_of(4.0)) == 1.0  # the mean of x^4 is 0.2
    assert fit_exponent(maps_of(0.2)) == LARGEST_EXPONENT
    assert fit_exponent(maps_of(90.0)) == SMALLEST_EXPONENT


def test_maps_without_heat_decide_nothing() -> None:
    empty = HeatMap(text="", values=np.zeros((3, 3), np.float32), similarity=0.3, fault="empty")
    assert fit_exponent([]) is None
    assert fit_exponent([empty]) is None
    assert fit_exponent([*maps_of(1.5), empty]) == fit_exponent(maps_of(1.5))


def test_a_power_keeps_the_lowest_the_highest_and_the_order_of_levels() -> None:
    levels = np.arange(LEVELS + 1, dtype=np.uint8)
    raised = raise_levels(levels, 2.5)
    assert (raised[0], raised[-1]) == (0, LEVELS)
    assert (np.diff(raised.astype(int)) >= 0).all()
    assert raise_levels(levels, 1.0) is levels


def test_a_calibration_of_before_fits_where_heat_is_not_raised() -> None:
    usual, one, raised = (
        calibration_basis(GradEclipConfig(), RegionsConfig(exponent=exponent), "abc", None)
        for exponent in ("auto", 1.0, 2.0)
    )
    assert usual == one
    assert "exponent" not in usual["regions"]
    assert raised["regions"]["exponent"] == 2.0


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scenes, which are enough for a fit."""
    monkeypatch.setattr(presence_fit, "FEWEST_IMAGES", 10)
    monkeypatch.setattr(presence_fit, "LEAST_LOOK", 16)
    monkeypatch.setattr(presence_fit, "FEWEST_PHRASES", 10)
    write_scenes(tmp_path / "scenes", 24, 43)
    return tmp_path / "scenes"


def flat(scenes: Path, out: Path, **regions: Any) -> Any:
    output = {"path": str(out), "rows_per_file": 8}
    return config_of(scenes, explain=FLAT, regions=regions, output=output)


def test_a_run_without_a_calibration_says_and_stores_its_power(scenes: Path, tmp_path: Path) -> None:
    _, text = run_aloud(flat(scenes, tmp_path / "out"))
    manifest = manifest_of(tmp_path / "out")
    exponent = manifest["run"]["exponent"]
    assert exponent != 1.0
    assert f"(regions.exponent: {exponent})" in text
    assert manifest["config"]["regions"]["exponent"] == exponent
    assert manifest["run"]["config"]["regions"]["exponent"] == "auto"

    run_aloud(flat(scenes, tmp_path / "named", exponent=exponent))
    assert_alike(rows_of(tmp_path / "out"), rows_of(tmp_path / "named"))
    assert "exponent" not in manifest_of(tmp_path / "named")["run"]

    run_aloud(flat(scenes, tmp_path / "one", exponent=1.0))
    boxes, plain = (
        [region["bbox"] for row in rows_of(tmp_path / name) for region in row["annotations"]]
        for name in ("out", "one")
    )
    assert boxes != plain


@pytest.mark.slow
def test_a_calibration_brings_the_power_of_its_maps(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth_fit, "FEWEST_REGIONS", 20)
    monkeypatch.setattr(presence, "FEWEST_PHRASES", 20)
    run_aloud(flat(scenes, tmp_path / "out"))
    exponent = manifest_of(tmp_path / "out")["run"]["exponent"]
    file = tmp_path / "c.json"
    fit = ("calibrate", tmp_path / "out", "--truth", scenes / "truth.json", "--out", file)
    code, _, errors = called(*fit, "--set", f"regions.exponent={exponent}")
    assert code == 0, errors
    run_aloud(flat(scenes, tmp_path / "again", calibration=str(file)))
    assert manifest_of(tmp_path / "again")["config"]["regions"]["exponent"] == exponent
    run_aloud(flat(scenes, tmp_path / "named", calibration=str(file), exponent=exponent))
    assert_alike(rows_of(tmp_path / "again"), rows_of(tmp_path / "named"))
    with expect_error(ConfigError, key="regions.calibration"):
        run_aloud(flat(scenes, tmp_path / "one", calibration=str(file), exponent=1.0))


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_its_power(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_aloud(flat(scenes, tmp_path / "out"))
    exponent = manifest_of(tmp_path / "out")["run"]["exponent"]
    rows = rows_of(tmp_path / "out")
    shard, *_ = sorted((tmp_path / "out" / "data").iterdir())
    shard.unlink()
    monkeypatch.setattr("phrasebox.pipeline.run.warm_up.fit_exponent", lambda _maps: 1.0)
    run_aloud(flat(scenes, tmp_path / "out"))
    assert manifest_of(tmp_path / "out")["run"]["exponent"] == exponent
    assert_alike(rows, rows_of(tmp_path / "out"))
