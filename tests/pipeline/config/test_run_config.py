"""What a user types: where values come from, and one readable line for what cannot be meant."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from pydantic import BaseModel

from phrasebox.pipeline.config.output import OutputConfig
from phrasebox.pipeline.config.paths import with_absolute_paths
from phrasebox.pipeline.config.run_config import (
    EngineConfig,
    ExplainCommandConfig,
    RunConfig,
    load_config,
    stored_config,
)
from phrasebox.pipeline.export import EXPORTERS
from phrasebox.pipeline.research.finetune.config import RECIPES, FinetuneConfig
from phrasebox.stages.contract.errors import ConfigError, InputError
from phrasebox.stages.explain import EXPLAINERS
from phrasebox.stages.model.config import ModelConfig
from phrasebox.stages.phrases.config import PhrasesConfig
from phrasebox.stages.prepare import ImagesConfig
from phrasebox.stages.read import READERS
from phrasebox.stages.regions.config import RegionsConfig
from phrasebox.stages.sources.source import SOURCES
from tests.messages import expect_error

ROOT = Path(__file__).parents[3]
INPUT = ["input.kind=jsonl", "input.path=a.jsonl"]
IDENTITY = ("name", "pretrained", "checkpoint", "weights", "config")


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def message(settings: list[str], path: Path | None = None, model: type[BaseModel] = RunConfig) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, settings, model)
    return str(error.value)


def test_yaml_goes_over_defaults_and_set_over_yaml(tmp_path: Path) -> None:
    text = "input: {kind: csv, path: a.csv}\nexplain: {blocks: 2, heads: single}\noutput: {path: x}"
    config = load_config(written(tmp_path, text), ["explain.blocks=3", "explain.blocks=1"])
    assert (config.explain.blocks, config.explain.heads, config.explain.kind) == (1, "single", "grad_eclip")
    assert (config.input.kind, config.output.path, config.engine) == ("csv", Path("x"), EngineConfig())


def test_set_may_put_whole_sections_and_yaml_values() -> None:
    config = load_config(
        None, ["input={kind: jsonl, path: [a.jsonl, b.jsonl]}", "explain.templates=['a {}', '{}']"]
    )
    assert config.input.path == ("a.jsonl", "b.jsonl")
    assert config.explain.templates == ("a {}", "{}")
    assert load_config(None, [*INPUT, "input.path=a=b.jsonl"]).input.path == "a=b.jsonl"


def test_a_config_prints_itself_and_reads_itself(tmp_path: Path) -> None:
    config = load_config(None, [*INPUT, "explain.blocks=2", "model.device=cpu", "output.path=x y"])
    assert load_config(written(tmp_path, config.to_yaml()), []) == config
    in_storage = load_config(None, [*INPUT, "output.path=s3://bucket/out"])
    assert "path: s3://bucket/out\n" in in_storage.to_yaml()


@pytest.mark.parametrize("preset", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["photo", "ViT-B-32/openai"])
def test_input_and_model_of_the_command_line_replace_those_of_any_preset(preset, name, tmp_path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a dog")
    given = {"input.path": str(tmp_path), "input.image_root": None, "model.name": name}
    config = load_config(preset, [], options=given)
    bare = load_config(None, [], options=given)
    assert config.input == bare.input
    assert [getattr(config.model, key) for key in IDENTITY] == [
        getattr(bare.model, key) for key in IDENTITY
    ]


BROUGHT = ("grad_eclip", 0.25, "none", 4)
DEFAULT = ("grad_eclip", 0.0, "propagation", 1)


@pytest.mark.parametrize(
    ("values", "maps", "cut"),
    [
        ({}, DEFAULT, ("fitted", "linear", 1.0)),
        ({"model": ModelConfig(name="demo")}, BROUGHT, ("fixed", "guided", 0.5)),
        (
            {"model": {"name": "demo"}, "regions": RegionsConfig(rule="otsu")},
            BROUGHT,
            ("otsu", "guided", 0.5),
        ),
        (
            {"model": {"name": "demo"}, "explain": {"kind": "legrad"}},
            ("legrad", 0, "propagation", None),
            None,
        ),
        (
            {"model": {"name": "demo"}, "explain": {"variant": "authors"}},
            ("grad_eclip", 0, "none", 1),
            None,
        ),
    ],
)
def test_a_bundled_model_brings_settings_that_stand_where_none_are_given(values, maps, cut) -> None:
    config: Any = RunConfig.model_validate({"input": {"kind": "jsonl", "path": "a"}, **values})
    explain = config.explain
    regions = config.regions
    assert (explain.kind, explain.contrast, explain.affinity, getattr(explain, "blocks", None)) == maps
    assert cut is None or (regions.rule, regions.upsample, regions.smooth_patches) == cut
    stored = config.model_dump(mode="json")
    assert RunConfig.model_validate(stored).model_dump(mode="json") == stored


@pytest.mark.parametrize("preset", sorted(ROOT.glob("configs/*.yaml")), ids=lambda path: path.stem)
def test_every_preset_loads(preset: Path) -> None:
    config = load_config(preset, [])
    assert load_config(preset, ["engine.kind=inline"]).engine == EngineConfig(kind="inline")
    assert f"`{preset.name}`" in (ROOT / "configs" / "README.md").read_text()
    assert config.output.path != Path("out")


VALUES = {
    "input=": "input: missing. Say what to read, for example: captions.jsonl",
    "input={path: a.jsonl, captoin: x}": "input.captoin: no such key; did you mean input.caption?",
    "explain.blocks=": "explain.blocks: expected a valid integer, got None",
    "model.nam=demo": "model.nam: no such key; did you mean model.name?",
    "regions.treshold=0.5": "regions.treshold: no such key; did you mean regions.threshold?",
    "output.zzzzz=1": "output.zzzzz: no such key; keys here: caption_score, embed_images, heat_maps, max_error_share",
    "input={kind: csv, path: a, delimter: x}": "input.delimter: no such key; did",
    "input.kind=json": "input.kind: no kind 'json'; did you mean jsonl? kinds: " + ", ".join(READERS),
    "explain.kind=grad_eclipse": "explain.kind: no kind 'grad_eclipse'; did you mean grad_eclip? kinds: "
    + ", ".join(EXPLAINERS),
    "engine={kind: inline, cpu_workers: 3}": "engine: cpu_workers is about Ray, and engine.kind=inline starts none",
    **{
        f"engine.explain_workers={no}": "engine.explain_workers: "
        for no in ("0", "0-3", "3-", "many", "-2", "1.5")
    },
    "output.rows_per_file=0": "output.rows_per_file: expected greater than or equal to 1, got 0",
    "output.path=": "output.path: expected a path, got None",
    "output.embed_images=maybe": "output.embed_images: expected a valid boolean",
    "output=out": "output: expected keys below it, got 'out'",
    "explain.blocks=two": "explain.blocks: expected a valid integer",
    "explain.image_size=big": "explain.image_size: expected 'model' or 'keep', got 'big'; or: ",
    "explain.templates=[a]": "explain.templates: each template needs `{}` where the phrase goes",
    "explain.variant=author": "explain.variant: expected 'recommended' or 'authors', got 'author'",
    "model.name=ViT-B-16": "model: ViT-B-16 needs weights: set model.pretrained=TAG",
    "explain.blocks.x=3": "explain.blocks: expected a valid integer",
    "abc": "--set abc: expected KEY=VALUE, for example --set output.path=out/",
    "=3": "--set =3: expected KEY=VALUE",
    "input.path.x=3": "input.path.x: path holds the value 'a.jsonl', not keys",
    'output.path="a\\0b"': "output.path: a path cannot hold the character NUL, got",
    "output.path='~nobodyatall/x'": "output.path: no user is called 'nobodyatall'",
    "output.max_error_share=.nan": "output.max_error_share: expected a finite number",
    "output.path={a: 1, a: 2}": "--set output.path={a: 1, a: 2}: the value is not YAML: the key 'a' is given twice",
    "output.path=[": "--set output.path=[: the value is not YAML: ",
}


@pytest.mark.parametrize("setting", VALUES)
def test_a_bad_key_or_value_is_one_readable_line(setting: str) -> None:
    told = message([*INPUT, setting])
    assert told.startswith(VALUES[setting])
    assert "\n" not in told
    assert "pydantic" not in told
    assert "<class" not in told


def test_several_problems_are_a_line_each() -> None:
    assert message(["inptu.kind=jsonl", "output.rows_per_file=0"]).splitlines() == [
        "input: missing. Say what to read, for example: captions.jsonl --images photos/",
        "output.rows_per_file: expected greater than or equal to 1, got 0",
        "inptu: no such key; did you mean input?",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("- a\n- b\n", "holds a list, not a mapping of keys"),
        ("a: [1\nb: 2", "is not YAML: "),
        ("just words", "holds a str, not a mapping"),
        ("a: !!python/object:os.system x", "is not YAML: could not determine a constructor"),
        ("engine: {kind: inline}\nengine: {kind: ray}", "is not YAML: the key 'engine' is given twice"),
        ("output: {path: a, path: b}", "is not YAML: the key 'path' is given twice"),
        ("output: {path: 2021-02-30}", "is not YAML: day is out of range"),
        ("3: x\ninput: {kind: jsonl, path: a}", "3: "),
    ],
    ids=["list", "broken", "words", "code", "key twice", "inner key twice", "no date", "number as key"],
)
def test_a_file_that_is_no_config(content: str, told: str, tmp_path: Path) -> None:
    text = message([], written(tmp_path, content))
    assert told in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.yaml", None, "No such file or directory"),
        (".", None, "Is a directory"),
        ("binary.yaml", b"\xff\xfe\x00", "is not YAML: "),
    ],
)
def test_a_file_that_is_not_there_or_no_text(
    name: str, content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert words in message([], tmp_path / name)


def test_a_section_alone_and_explain_need_no_input(tmp_path: Path) -> None:
    """`phrasebox phrases --set` takes its keys without the section's name."""
    told = message(["max_phrase=5"], model=PhrasesConfig)
    assert told == "max_phrase: no such key; did you mean max_phrases?"
    assert load_config(None, ["explain.blocks=1"], ExplainCommandConfig).explain.blocks == 1


def changed(setting: str) -> Any:
    return load_config(None, [*INPUT, setting]).rows_depend_on()


def test_what_rows_depend_on() -> None:
    plain = load_config(None, INPUT).rows_depend_on()
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain
    columns = ("output.embed_images=true", "output.heat_maps=false")
    for setting in (
        "input.path=b",
        "model.precision=bf16",
        "explain.blocks=2",
        "regions.rule=mean",
        *columns,
    ):
        assert changed(setting) != plain
    files = ("output.path=x", "output.rows_per_file=7", "output.max_error_share=0.1")
    sizes = ("input.piece_size=7", "model.batch_size=2")
    for setting in ("input.limit=3", "model.device=cpu", "model.threads=1", *files, *sizes):
        assert changed(setting) == plain


@pytest.mark.parametrize(
    ("written_as", "same"),
    [
        (
            "input.path=f8k",
            ["input.path=f8k/", "input.path=./f8k", "input.path={}/f8k", "input.path=file://{}/f8k"],
        ),
        ("input.path=s3://bucket/a", ["input.path=s3://bucket/a/"]),
        ("input.image_root=captions", ["input.image_root=captions/", "input.image_root=x/../captions"]),
        ("model={checkpoint: my}", ["model={checkpoint: ./my/}", "model={checkpoint: '{}/my'}"]),
        ("regions.calibration=fit.json", ["regions.calibration={}/fit.json"]),
    ],
)
def test_the_same_path_written_otherwise_is_the_same(
    written_as: str, same: list[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = changed(written_as)
    assert [changed(setting.replace("{}", str(tmp_path))) for setting in same] == [first] * len(same)
    assert first not in (load_config(None, INPUT).rows_depend_on(), changed("regions.calibration=none"))
    monkeypatch.chdir("/")
    assert with_absolute_paths(first) == first
    assert "://" in written_as or changed(written_as) != first


def test_a_variant_is_resolved_when_it_is_loaded() -> None:
    """What is stored says what was computed: no later change of a preset can change what a dataset says."""
    config = load_config(None, [*INPUT, "explain.variant=authors"])
    assert (config.explain.blocks, config.explain.heads, config.explain.shorter_side_px) == (
        1,
        "single",
        640,
    )
    stored = config.rows_depend_on()["explain"]
    assert (stored["blocks"], stored["heads"], stored["contrast"]) == (1, "single", 0.0)


def test_another_variant_replaces_stored_values() -> None:
    stored = json.loads(load_config(None, INPUT).model_dump_json())
    config = stored_config(stored, ["explain.variant=authors", "explain.heads=model"])
    assert (config.explain.blocks, config.explain.heads) == (1, "model")


def test_the_kind_of_input_follows_from_the_path(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("image\tcaption\n")
    config = load_config(None, [f"input.path={tmp_path / 'a.tsv'}"])
    assert config.input.kind == "csv"
    assert RunConfig(input={"path": str(tmp_path / "a.tsv")}) == config
    with expect_error(InputError, key="input.path"):
        load_config(None, [f"input.path={tmp_path / 'none.xyz'}"])


TABLES = (EXPLAINERS, SOURCES, READERS, RECIPES, EXPORTERS)
SETTINGS = [
    RunConfig, EngineConfig, ModelConfig, PhrasesConfig, ImagesConfig, RegionsConfig, OutputConfig, FinetuneConfig,
    *dict.fromkeys(table[kind].config_type for table in TABLES for kind in table),
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.__name__)
def test_every_setting_says_what_it_is(settings: type[BaseModel]) -> None:
    """`--print-config --docs` and the error messages have nothing else to go by."""
    assert [
        name for name, field in settings.model_fields.items() if name != "kind" and not field.description
    ] == []


def test_the_documented_configuration_is_the_configuration(tmp_path: Path) -> None:
    config = load_config(None, INPUT)
    text = config.to_documented_yaml()
    assert load_config(written(tmp_path, text), []) == config
    lines = text.splitlines()
    for name in ("  image_root:", "  blocks:", "  rows_per_file:", "regions:"):
        place = next(number for number, line in enumerate(lines) if line.startswith(name))
        assert lines[place - 1].strip().startswith("# "), name


def test_python_is_told_the_same_words() -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(input={"path": "a.jsonl"}, modle={"name": "demo"}, explain={"block": 1})
    assert str(error.value).splitlines() == [
        "explain.block: no such key; did you mean explain.blocks?",
        "modle: no such key; did you mean model?",
    ]
