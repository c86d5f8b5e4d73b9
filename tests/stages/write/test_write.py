"""Shards, their counts, the table of categories, and the card."""

import re
from dataclasses import replace
from hashlib import sha256
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from phrasebox.pipeline.dataset.tally import rows_of, write_categories
from phrasebox.pipeline.output.report import Report, summary_table
from phrasebox.stages.contract.errors import SchemaError
from phrasebox.stages.contract.records import OTHER_LANGUAGE, stable_id
from phrasebox.stages.contract.schema import DATASET_SCHEMA, ENTRIES, ColumnOption, dataset_schema
from phrasebox.stages.contract.score_threshold import ScoreRanking
from phrasebox.stages.files.shards import origin_of, read_shard_file
from phrasebox.stages.files.storage import found_in, parquet_file
from phrasebox.stages.write import CardOrigin, ShardWriter, Tally, dataset_card
from tests.messages import expect_error
from tests.stages.write.rows import HEIGHT, WIDTH, annotated, mixed, write_shards


def sizes_in(folder: Path) -> dict[str, int]:
    return {path.name: pq.read_metadata(path).num_rows for path in sorted(folder.iterdir())}


def table_of(rows: int, start: int = 0) -> Any:
    return pa.table({"sample_id": [f"{number:02d}" for number in range(start, start + rows)]})


@pytest.mark.parametrize("parts", [[11], [1] * 11, [3, 0, 8]], ids=str)
@pytest.mark.parametrize("rows_per_file", [1, 4, 11, 100])
def test_rows_of_every_file(parts: list[int], rows_per_file: int, tmp_path: Path) -> None:
    """A file is there as soon as it is full, and numbers continue."""
    pq.write_table(pa.table({"sample_id": pa.array([], pa.string())}), tmp_path / "00003.parquet")
    (tmp_path / ".00009.parquet.123.tmp").touch()
    writer = ShardWriter(tmp_path, rows_per_file)
    start = 0
    for part in parts:
        writer.write(table_of(part, start).cast(pa.schema([("sample_id", pa.string())])))
        start += part
        assert len(list(tmp_path.glob("*.parquet"))) == 1 + start // rows_per_file
    writer.close()
    writer.close()
    _, *shards = sorted(tmp_path.glob("0*.parquet"))
    assert [shard.name for shard in shards] == [f"{4 + n:05d}.parquet" for n in range(len(shards))]
    *full, last = (pq.read_metadata(shard).num_rows for shard in shards)
    assert {*full} <= {rows_per_file}
    assert last <= rows_per_file
    assert pq.read_table(shards)["sample_id"].to_pylist() == table_of(11)["sample_id"].to_pylist()


class FullDisk(pq.ParquetWriter):
    def close(self) -> None:
        super().close()
        raise OSError(28, "No space left on device")


def test_a_failed_write_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, 2)
    writer.write(table_of(3))
    monkeypatch.setattr(pq, "ParquetWriter", FullDisk)
    with pytest.raises(OSError, match="No space left"):
        writer.write(table_of(5))
    assert sizes_in(tmp_path) == {"00000.parquet": 2}


def test_a_shard_whose_write_was_interrupted_is_not_written_again(tmp_path, monkeypatch) -> None:
    rename = Path.replace

    def rename_and_stop(path: Path, target: Path) -> None:
        rename(path, target)
        raise KeyboardInterrupt

    noted: list[list[str]] = []
    writer = ShardWriter(tmp_path, 2, on_written=lambda shard, sample_ids: noted.append(sample_ids))
    monkeypatch.setattr(Path, "replace", rename_and_stop)
    with pytest.raises(KeyboardInterrupt):
        writer.write(table_of(3))
    monkeypatch.undo()
    writer.close()
    assert noted == [["02"]], "nobody has heard of the first"
    assert sizes_in(tmp_path) == {"00000.parquet": 2, "00001.parquet": 1}
    assert pq.read_table(tmp_path)["sample_id"].to_pylist() == ["00", "01", "02"]


def test_a_shard_is_described_as_it_lies_on_the_disk(tmp_path: Path) -> None:
    written = []
    table = write_shards(
        mixed(),
        tmp_path,
        rows_per_file=4,
        origin='{"run": {"a": 1}}',
        on_written=lambda shard, sample_ids: written.append((shard, sample_ids)),
    )
    paths = sorted(tmp_path.iterdir())
    assert [shard for shard, _ in written] == [read_shard_file(path) for path in paths]
    assert [shard.sha256 for shard, _ in written] == [
        sha256(path.read_bytes()).hexdigest() for path in paths
    ]
    assert [shard.rows for shard, _ in written] == [4, 4, 1]
    assert [name for _, sample_ids in written for name in sample_ids] == table["sample_id"].to_pylist()
    assert all(origin_of(path) == {"run": {"a": 1}} for path in paths)


def test_a_changed_page_is_not_read(tmp_path: Path) -> None:
    """A changed byte within a page that is not compressed would pass for a value."""
    write_shards(mixed(), tmp_path, rows_per_file=100)
    (path,) = tmp_path.iterdir()
    with parquet_file(path) as file:
        column = file.metadata.row_group(0).column(file.schema.names.index("id"))
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2 + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises((OSError, pa.ArrowException)), parquet_file(path) as file:
        file.read()


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_shards(mixed(), tmp_path / folder, rows_per_file=100)
    assert pq.read_schema(tmp_path / "a/00000.parquet").equals(DATASET_SCHEMA)
    assert (tmp_path / "a/00000.parquet").read_bytes() == (tmp_path / "b/00000.parquet").read_bytes()


@pytest.mark.parametrize("options", [[], ["image"]])
def test_row_groups(options: list[ColumnOption], tmp_path: Path) -> None:
    """Small ones with images, since a reader of one row reads its group."""
    write_shards([annotated(0)] * 1100, tmp_path, options, rows_per_file=1050)
    metadata = [pq.read_metadata(path) for path in sorted(tmp_path.iterdir())]
    groups = [[one.row_group(number).num_rows for number in range(one.num_row_groups)] for one in metadata]
    assert groups == ([[100] * 10 + [50], [50]] if options else [[1000, 50], [50]])


def tally_of(folder: Path) -> Tally:
    shards = found_in(folder, "*.parquet")
    with rows_of(shards) as rows:
        return rows.tally(len(shards))


def test_counts_of_a_mixed_dataset(tmp_path: Path) -> None:
    write_shards(mixed(), tmp_path, rows_per_file=4)
    (tmp_path / ".00009.parquet.5.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").touch()
    total = tally_of(tmp_path)
    assert (total.files, total.rows) == (3, 9)
    assert (total.annotated, total.without_regions, total.without_phrases, total.failed) == (6, 1, 1, 2)
    assert total.failed_by_reason == {"missing_image": 1, "bad_image": 1}
    assert (total.phrases, total.regions) == (12, 9)
    with rows_of(found_in(tmp_path, "*.parquet")) as rows:
        named = pa.concat_tables(rows.categories()).select(["name", "supercategory", "count"]).to_pylist()
    assert sorted(tuple(row.values()) for row in named) == [("red car", "car", 5), ("two dogs", "dog", 4)]
    assert total.categories == 2


def test_rows_with_a_caption_in_another_language_are_counted_and_reported(tmp_path: Path) -> None:
    first, second, *_ = mixed()
    notes = (f"{OTHER_LANGUAGE} than en: 0 (de)", f"{OTHER_LANGUAGE} than en, left out: 1 (zh)")
    write_shards([replace(first, notes=notes), replace(second, notes=("another",))], tmp_path)
    total = tally_of(tmp_path)
    assert total.other_language == 1
    text = StringIO()
    Console(file=text, width=100).print(summary_table(total, Report()))
    assert re.search(r"with a caption in another language\W+1 \(50", text.getvalue())


def test_a_foreign_shard_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"error": [None], "text": ["a"]}), tmp_path / "other.parquet")
    with expect_error(SchemaError):
        tally_of(tmp_path)


def test_categories(tmp_path: Path) -> None:
    """The supercategory is the most frequent head; of equally frequent ones the first of the alphabet."""
    heads = {("glasses", "glass"): 2, ("glasses", "glasses"): 3, ("top", "top"): 1, ("top", "cloth"): 1}
    for counted, expected in (({}, {}), (heads, {"glasses": ("glasses", 5), "top": ("cloth", 2)})):
        named = [name for name, times in counted.items() for _ in range(times)]
        record = annotated(0)
        phrases = tuple(replace(record.phrases[0], text=text, head=head) for text, head in named)
        regions = tuple(replace(record.regions[0], phrase_index=index) for index in range(len(named)))
        folder = tmp_path / str(len(named))
        write_shards([replace(record, phrases=phrases, regions=regions, heat_maps=())], folder)
        with rows_of(found_in(folder, "*.parquet")) as rows:
            write_categories(rows, tmp_path / "categories.parquet")
            table = pq.read_table(tmp_path / "categories.parquet")
            real = rows.connection
            # DuckDB gives a million rows at a time, which may end within a phrase.
            few = lambda text, real=real: real.sql(text).to_arrow_table().to_reader(2)  # noqa: E731
            rows.connection = SimpleNamespace(sql=few)
            assert pa.concat_tables(rows.categories()).combine_chunks() == table
            rows.connection = real
        assert table.column_names == ["id", "name", "supercategory", "count"]
        categories = table.to_pylist()
        assert {row["name"]: (row["supercategory"], row["count"]) for row in categories} == expected
        assert [row["id"] for row in categories] == sorted(stable_id(row["name"]) for row in categories)


@pytest.mark.parametrize("options", [[], ["image"]])
def test_load_dataset_reads_every_row(options: list[ColumnOption], tmp_path: Path) -> None:
    """The features are the schema's: a first file whose rows all failed must not decide on the types."""
    import datasets

    write_shards(mixed(), tmp_path / "data", options)
    schema = dataset_schema(options)
    origin = CardOrigin(model="demo", precision="bf16", explainer="grad_eclip", fitted_to="2 images")
    card = dataset_card(tally_of(tmp_path / "data"), schema, origin)
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert "license" not in header, "the images' licence is not ours to state"
    total = tally_of(tmp_path / "data")
    scores = [region.score for record in mixed() for region in record.regions]
    assert total.thresholds == ScoreRanking.of(np.float32(scores)).table()
    threshold = total.thresholds[0]
    for text in (
        total.advised_in_words,
        f"| {threshold.goal:g} | {threshold.score:.3f} | {threshold.regions} ({threshold.share:.0%}) |",
        "| images | 9 |\n| with phrases | 6 |\n| without phrases | 1 |\n| failed | 2 |",
        "`demo` in bf16",
        *(f"| `{name}` | " for name in (*schema.names, *(field.name for field in ENTRIES["annotations"]))),
        "[x, y, w, h], half open, see bbox_of (px)",
    ):
        assert text in card

    loaded = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    rows = loaded["train"]
    for field in schema:
        if field.name == "image":
            assert isinstance(rows.features["image"], datasets.Image)
        else:
            assert rows.features.arrow_schema.field(field.name).type == field.type, field.name
    for row, record in zip(rows, mixed(), strict=True):
        assert row["sample_id"] == record.sample.sample_id
        for annotation, region in zip(row["annotations"], record.regions, strict=True):
            assert annotation["bbox"] == list(region.box_xywh_px)
            assert annotation["segmentation"] == {"size": [HEIGHT, WIDTH], "counts": region.mask.counts}
        if options:
            assert (row["image"] is None) == (record.error is not None)
            assert row["image"] is None or np.asarray(row["image"]).shape == (HEIGHT, WIDTH, 3)
