"""An annotator makes the rows that a run makes of the same images and captions."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phrasebox.pipeline.annotate.annotator import Annotator
from phrasebox.pipeline.annotate.estimates import Estimates
from phrasebox.pipeline.config.run_config import RunConfig
from phrasebox.pipeline.demo.scenes import write_scenes
from phrasebox.pipeline.run.run import run
from phrasebox.stages.contract.schema import dataset_schema
from tests.build.datasets import Json, manifest_of, rows_of, shards_of

NUMBERS = {"bbox": 1.0, "score": 1e-3, "presence": 1e-3, "similarity": 1e-5}
"""Fields of regions and absent phrases -> the most that another batch moves them, as in the test of `Locator`."""

PIXELS = {"segmentation", "area"}


def assert_like(rows: list[Json], expected: list[Json]) -> None:
    """The same regions and absent phrases, within a pixel and rounding."""
    assert [row["error"] for row in rows] == [row["error"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row["caption_score"] == pytest.approx(other["caption_score"], abs=1e-5)
        for name in ("annotations", "absent"):
            assert len(row[name]) == len(other[name])
            for entry, wanted in zip(row[name], other[name], strict=True):
                assert entry.keys() == wanted.keys()
                for field in entry.keys() - PIXELS:
                    if field in NUMBERS:
                        assert entry[field] == pytest.approx(wanted[field], abs=NUMBERS[field]), field
                    else:
                        assert entry[field] == wanted[field], field
        areas = [entry["area"] for entry in row["annotations"]]
        assert areas == pytest.approx([entry["area"] for entry in other["annotations"]], rel=0.02, abs=4)


def test_the_rows_of_a_table_are_those_of_a_run(
    make_annotator: Callable[..., Annotator], rows: list[Json], inline_dataset: Path, tmp_path: Path
) -> None:
    """With the share of absent phrases that the run and the annotator each estimate from the same images."""
    fitted = make_annotator({"absent_share": "auto"}).fit(pa.Table.from_pylist(rows))
    share = manifest_of(inline_dataset)["run"]["absent_share"]
    assert fitted.estimates.decisions.absent_share == pytest.approx(share, abs=1e-3)
    assert fitted.origins == {
        "presence": "calibration",
        "absent_share": "fitted",
        "exponent": "calibration",
        "shift": "fitted",
    }
    fitted.estimates.save(tmp_path / "estimates.json")
    again = make_annotator({"absent_share": "auto"}, estimates=tmp_path / "estimates.json")
    assert again.estimates == fitted.estimates
    expected = {row["sample_id"]: row for row in rows_of(inline_dataset)}
    assert sum(len(row["annotations"]) for row in expected.values()) > len(rows)
    annotated = again(rows)
    assert_like(annotated, [expected[row["id"]] for row in rows])
    table = again(pa.Table.from_pylist(rows))
    assert table.to_pylist() == annotated


def test_the_added_columns_have_the_types_of_a_dataset(
    annotator: Annotator, make_annotator: Callable[..., Annotator], rows: list[Json], inline_dataset: Path
) -> None:
    stored = pq.read_schema(shards_of(inline_dataset)[0])
    table = annotator(pa.Table.from_pylist(rows[:2]))
    assert table.schema.names == [*rows[0], *Annotator.schema.names]
    for name in Annotator.schema.names:
        assert table.schema.field(name).equals(stored.field(name)), name
        assert annotator.schema.field(name).equals(dataset_schema().field(name), check_metadata=True)
    with_maps = make_annotator(output={"heat_maps": True, "caption_score": False})
    assert with_maps.schema.names == [*Annotator.schema.names, "phrases", "heat_maps", "caption_presence"]
    table = with_maps(pa.Table.from_pylist(rows[:1]))
    assert table.schema.names[len(rows[0]) :] == with_maps.schema.names
    (row,) = table.to_pylist()
    assert len(row["heat_maps"]) == len({entry["phrase"] for entry in row["phrases"]}) > 0
    assert row["caption_score"] == []


MANY = 60

GENERIC = {"rule": "fitted", "smooth_patches": 1.0, "upsample": "linear"}
"""What the calibration of other models was made with, where the settings of the model differ."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes that suffice to fit presence to."""
    folder = tmp_path_factory.mktemp("many")
    write_scenes(folder, MANY, seed=5)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"threshold": 0.4, "rule": "fixed"}, id="no calibration"),
        pytest.param({"calibration": "none"}, id="none"),
        pytest.param({**GENERIC, "calibration": "generic"}, id="that of other models"),
    ],
)
@pytest.mark.slow
def test_presence_is_fitted_as_by_a_run(many: Path, settings: Json, tmp_path: Path) -> None:
    """Where no calibration fits the settings, where none is wanted, and with one that images bring to the model."""
    source = {"path": f"{many}/captions.jsonl", "image_root": f"{many}/images"}
    config = {"model": {"name": "demo"}, "regions": settings}
    output = {"path": str(tmp_path / "dataset")}
    dataset = run(
        RunConfig.model_validate(
            {**config, "input": source, "engine": {"kind": "inline"}, "output": output}
        )
    )
    rows = [json.loads(line) for line in (many / "captions.jsonl").read_text().splitlines()]
    columns = {"image_root": f"{many}/images", "id": "id"}
    annotate = Annotator("demo", input=columns, regions=settings).fit(rows)
    has_presence = settings.get("calibration") != "none"
    assert annotate.origins["presence"] == ("fitted" if has_presence else "off")
    assert (annotate.estimates.presence is not None) == has_presence
    annotate.estimates.save(tmp_path / "estimates.json")
    estimates = Estimates.load(tmp_path / "estimates.json")
    expected = {row["sample_id"]: row for row in rows_of(Path(dataset))}
    annotated = Annotator("demo", input=columns, regions=settings, estimates=estimates)(rows)
    assert_like(annotated, [expected[row["id"]] for row in rows])
    presences = {entry["presence"] for row in annotated for entry in row["annotations"]}
    assert (presences == {None}) == (not has_presence)


def test_the_settings_of_a_run_are_taken(
    annotator: Annotator, rows: list[Json], scenes_config: Json, tmp_path: Path
) -> None:
    config = RunConfig.model_validate(
        {
            **scenes_config,
            "regions": {"absent_share": 0.05, "min_presence": None},
            "output": {"path": tmp_path},
        }
    )
    of_run = Annotator(run=config, input={"id": "id", "image_root": scenes_config["input"]["image_root"]})
    everything = of_run(rows)
    assert [row["absent"] for row in everything] == [[]] * len(rows)
    regions = [sum(len(row["annotations"]) for row in table) for table in (everything, annotator(rows))]
    assert regions[0] >= regions[1]
    assert of_run.origins["absent_share"] == "given"
