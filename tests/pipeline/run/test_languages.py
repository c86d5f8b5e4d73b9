"""French captions, and captions in several languages, from the run to the viewer and the exports."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from phrasebox.pipeline.dataset.folder import open_dataset
from phrasebox.pipeline.dataset.validate import validate
from phrasebox.stages.contract.errors import ConfigError
from tests.build.datasets import change_rows, copy_of, list_shards, manifest_of, shards_of
from tests.build.files import read_json, read_lines, write_lines
from tests.messages import expect_error
from tests.pipeline.commands.evaluated import called as phrasebox
from tests.pipeline.commands.evaluated import config_of, drawing, run_aloud
from tests.pipeline.light import rows_of
from tests.pipeline.viewer.conftest import serving
from tests.pipeline.viewer.test_app import ask

FRENCH = [
    ["une étoile et une cloche blanche avec une cloche bleue", "l'étoile à côté d'un ballon bleu"],
    ["Une bougie rouge à gauche du bus, une clé rouge et un chapeau vert."],
    ["deux arbres bleus"],
]
TEXTS = [
    ["étoile", "cloche blanche", "cloche bleue", "étoile", "ballon bleu"],
    ["bougie rouge", "bus", "clé rouge", "chapeau vert"],
    ["deux arbres bleus"],
]
GERMAN = "Ein kleiner Hund läuft im tiefen Schnee neben einem Mann"
scenes = drawing(4, 7)


def write_captions(scenes: Path, captions: list[list[str]]) -> None:
    lines = [
        {"id": f"s{number}", "image": f"{number:06d}.jpg", "captions": texts}
        for number, texts in enumerate(captions)
    ]
    write_lines(scenes / "captions.jsonl", lines)


@pytest.fixture(scope="module")
def french(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset of French captions by the bundled model, whose texts were English, and what the run has said."""
    write_captions(scenes, FRENCH)
    folder = tmp_path_factory.mktemp("french")
    output = {"path": str(folder / "out"), "heat_maps": True, "embed_images": True}
    phrases = {"language": "fr"}
    return run_aloud(config_of(scenes, phrases=phrases, output=output, regions={"absent_share": 0.01}))


def strings_in(content: str) -> list[str]:
    """The values of JSON, or of lines of JSON, as text without escapes."""
    try:
        values = [json.loads(content)]
    except ValueError:
        values = [json.loads(line) for line in content.splitlines()]
    return [json.dumps(value, ensure_ascii=False) for value in values]


def sorted_rows(dataset: Path) -> list[Any]:
    return sorted(rows_of(dataset), key=lambda row: row["sample_id"])


def phrases_of(row: Any) -> list[str]:
    return [entry["phrase"] for entry in row["phrases"]]


def test_rows_of_french_captions_have_french_phrases(french: tuple[Path, str]) -> None:
    dataset, _ = french
    rows = sorted_rows(dataset)
    assert list(map(phrases_of, rows)) == TEXTS
    assert [row["caption_language"] for row in rows] == [["fr", "fr"], ["fr"], ["fr"]]
    heads = [entry["head"] for entry in rows[1]["phrases"]]
    assert heads == ["bougie", "bus", "clé", "chapeau"]
    assert rows[2]["phrases"][0]["plural"]
    groups = {entry["phrase"]: entry["group"] for entry in rows[0]["annotations"]}
    assert len({*groups.values()}) == len(groups), (
        "the star of both captions is one object, and two bells are two"
    )
    assert [*validate(dataset)] == []


def test_a_model_that_reads_english_only_is_warned_of(french: tuple[Path, str]) -> None:
    dataset, text = french
    assert "100% of the images have a caption in a language that the model does not read." in text
    assert all(
        "captions in a language that the model does not read: 0 (fr)" in row["warnings"][0]
        for row in sorted_rows(dataset)
    )
    assert manifest_of(dataset)["caption_doubt"] is not None


def test_a_wrong_language_of_a_phrase_is_a_problem(french: tuple[Path, str], tmp_path: Path) -> None:
    """Articles are those of the caption's language."""
    folder = copy_of(french[0], tmp_path)

    def change(rows: list[Any]) -> None:
        rows[0]["caption_language"] = ["en", "en"]
        rows[1]["caption_language"] = ["fr", "fr"]

    change_rows(shards_of(folder)[0], change)
    list_shards(folder)
    problems = [*validate(folder)]
    assert any(
        "span says 'une cloche blanche' but the phrase is 'cloche blanche'" in line for line in problems
    )
    assert any("2 languages of 1 captions" in line for line in problems)


def test_french_phrases_are_exported_as_categories(french: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "coco"
    code, _, err = phrasebox("export", french[0], "--format", "coco", "--out", out)
    assert (code, err) == (0, "")
    content = read_json(out / "annotations" / "instances_train.json")
    names = {entry["name"] for entry in content["categories"]}
    assert names == {entry["phrase"] for row in rows_of(french[0]) for entry in row["annotations"]}
    assert {"étoile", "cloche blanche"} <= names


@pytest.mark.parametrize("style", ["ms-swift-json", "qwen3-vl", "llava", "florence-2"])
def test_french_phrases_are_in_questions_and_answers(
    style: str, french: tuple[Path, str], tmp_path: Path
) -> None:
    out = tmp_path / "chat"
    arguments = ["export", french[0], "--format", "chat", "--out", out, "--set", f"style={style}"]
    code, _, err = phrasebox(*arguments)
    assert (code, err) == (0, "")
    texts = [text for path in out.rglob("*.json*") for text in strings_in(path.read_text("utf-8"))]
    assert any("étoile" in text for text in texts)
    assert any("cloche blanche" in text for text in texts)


def test_french_phrases_are_searched_and_shown(french: tuple[Path, str]) -> None:
    with serving(french[0]) as served:
        for phrase, is_there in {"ÉTOILE": True, "cloche": True, "chien": False}.items():
            status, content = ask(served, f"/?phrase={quote(phrase)}")
            assert status == 200
            assert (b"s0" in content) == is_there, phrase
        number = next(row["id"] for row in rows_of(french[0]) if row["sample_id"] == "s0")
        status, content = ask(served, f"/sample/{number}")
        assert status == 200
        assert "cloche blanche" in content.decode()
        assert "étoile" in content.decode()


def test_captions_of_several_languages_are_parsed_each_by_its_own(scenes: Path, tmp_path: Path) -> None:
    captions = [
        ["Two blue trees next to a white bell", FRENCH[1][0]],
        [GERMAN],
        [GERMAN, "a photo of a yellow bus and a brown bear"],
        ["两只狗在雪地里奔跑。"],
    ]
    write_captions(scenes, captions)
    output = {"path": str(tmp_path / "out"), "heat_maps": True}
    dataset, text = run_aloud(config_of(scenes, phrases={"language": "auto"}, output=output))
    rows = sorted_rows(dataset)
    assert [row["caption_language"] for row in rows] == [["en", "fr"], ["de"], ["de", "en"], ["zh"]]
    assert phrases_of(rows[0]) == ["two blue trees", "white bell", *TEXTS[1]]
    assert phrases_of(rows[1]) == []
    assert phrases_of(rows[2]) == ["yellow bus", "brown bear"]
    note = "captions left out, because no parser of their language is installed"
    assert [line for row in rows[1:] for line in row["warnings"] if line.startswith(note)] == [
        f"{note}: 0 (de: de_core_news_sm)",
        f"{note}: 0 (de: de_core_news_sm)",
        f"{note}: 0 (zh: none)",
    ]
    assert (
        "2 captions in German got no phrases, because its parser is missing: python -m spacy download de_core_news_sm\n"
        in text
    )
    assert "1 caption in zh got no phrases" in text
    assert [*validate(dataset)] == []


def test_languages_can_be_selected_among_those_that_are_recognised(scenes: Path, tmp_path: Path) -> None:
    write_captions(scenes, [["Two blue trees next to a white bell", FRENCH[1][0]]])
    phrases = {"language": "auto", "languages": ["fr"]}
    output = {"path": str(tmp_path / "out"), "heat_maps": True}
    dataset, _ = run_aloud(config_of(scenes, phrases=phrases, output=output))
    (row,) = sorted_rows(dataset)
    assert phrases_of(row) == TEXTS[1]
    assert row["caption_language"] == ["en", "fr"]
    assert "captions in another language than fr, left out: 0 (en)" in row["warnings"]


@pytest.mark.parametrize("language", ["de", "tr"])
def test_a_language_without_a_parser_ends_a_run_before_its_first_row(
    language: str, scenes: Path, tmp_path: Path
) -> None:
    write_captions(scenes, FRENCH)
    with expect_error(ConfigError, key="phrases.spacy_models"):
        run_aloud(config_of(scenes, tmp_path / "out", phrases={"language": language}))
    assert not [*(tmp_path / "out").rglob("*.parquet")]


def test_phrases_that_were_written_before_know_their_languages(scenes: Path, tmp_path: Path) -> None:
    write_captions(scenes, [["a white bell", FRENCH[1][0]]])
    lines = tmp_path / "phrases.jsonl"
    arguments = ["phrases", scenes / "captions.jsonl", "--images", scenes / "images", "--out", lines]
    code, _, err = phrasebox(*arguments, "--set", "phrases.language=auto")
    assert (code, err) == (0, "")
    assert [line["language"] for line in read_lines(lines)] == ["en", "fr"]
    source = {**config_of(scenes).input.model_dump(mode="json"), "phrases": str(lines)}
    config = config_of(
        scenes,
        input=source,
        phrases={"language": "auto"},
        output={"path": str(tmp_path / "out"), "heat_maps": True},
    )
    dataset, _ = run_aloud(config)
    (row,) = sorted_rows(dataset)
    assert phrases_of(row) == ["white bell", *TEXTS[1]]
    assert row["caption_language"] == ["en", "fr"]
    assert [*validate(dataset)] == []
    assert open_dataset(dataset).manifest["schema_version"] == 2
