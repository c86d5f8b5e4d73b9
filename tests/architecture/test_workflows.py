"""The workflows of CI, and the programs of a release that they call."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.architecture.source import ROOT
from tests.build.datasets import Json

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXTRA_RIGHTS = {("release", "publish"): {"id-token": "write"}, ("release", "pages"): {"contents": "write"}}
"""Workflow, job -> what it may do beside reading the repository."""

READS = {"contents": "read"}


def jobs(path: Path) -> dict[str, Json]:
    return yaml.safe_load(path.read_text("utf-8"))["jobs"]


def steps(path: Path) -> list[Json]:
    return [step for job in jobs(path).values() for step in job.get("steps", ())]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_the_least_rights(path: Path) -> None:
    assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == READS
    for name, job in jobs(path).items():
        extra = EXTRA_RIGHTS.get((path.stem, name), {})
        assert job.get("permissions", READS) == {**READS, **extra}, name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_named_by_their_commit_and_jobs_end(path: Path) -> None:
    actions = re.findall(r"uses: (\S+)", path.read_text("utf-8"))
    assert actions
    assert [name for name in actions if not re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}|\./\S+", name)] == []
    for name, job in jobs(path).items():
        assert ("timeout-minutes" in job) is ("uses" not in job), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_what_is_there(path: Path) -> None:
    """Values of the event reach a shell as variables, so that none of them is a command."""
    commands = [step["run"] for step in steps(path) if "run" in step]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for command in commands:
        assert "${{" not in command
        assert set(re.findall(r"\bmake ([a-z]+)\b", command)) <= targets
        for program in re.findall(r"\.ci/\w+", command):
            assert (ROOT / program).stat().st_mode & 0o100, program


@pytest.mark.parametrize("name", ["fault.yml", "wish.yml"])
def test_a_form_of_issues_asks_for_something(name: str) -> None:
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / name).read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    questions = [entry for entry in form["body"] if entry["type"] != "markdown"]
    assert len({entry["id"] for entry in questions}) == len(questions)
    assert any(entry.get("validations", {}).get("required") for entry in questions)


def git(*arguments: str | Path, cwd: Path) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=tests", "-c", "user.email=tests@example.org", *map(str, arguments)],
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with the programs of a release, and a remote one."""
    folder = tmp_path / "checkout"
    (folder / ".ci").mkdir(parents=True)
    git("init", "--quiet", "--bare", tmp_path / "remote", cwd=tmp_path)
    git("init", "--quiet", cwd=folder)
    git("remote", "add", "origin", tmp_path / "remote", cwd=folder)
    for name in (".ci/pages", ".ci/release", "pyproject.toml", "CITATION.cff"):
        shutil.copy(ROOT / name, folder / name)
    git("add", "--all", cwd=folder)
    git("commit", "--quiet", "--message", "first", cwd=folder)
    return folder


def pages(checkout: Path, version: str, text: str) -> None:
    site = checkout / "out" / "docs"
    shutil.rmtree(site, ignore_errors=True)
    (site / "_static").mkdir(parents=True)
    (site / "index.html").write_text(text)
    (site / "_static" / "a.css").write_text(text)
    subprocess.run([checkout / ".ci" / "pages", version, "out/docs"], check=True, capture_output=True)


def test_the_pages_of_a_version_join_those_of_others(checkout: Path) -> None:
    def shown(path: str) -> str:
        return git("show", f"gh-pages:{path}", cwd=checkout.parent / "remote")

    pages(checkout, "v0.9.0", "nine")
    assert 'url=v0.9.0/"' in shown("index.html")
    pages(checkout, "v0.10.0", "ten")
    pages(checkout, "v0.9.1", "mended")
    listed = git("ls-tree", "-r", "--name-only", "gh-pages", cwd=checkout.parent / "remote").split()
    versions = ("v0.10.0", "v0.9.0", "v0.9.1")
    files = {f"{version}/{name}" for version in versions for name in ("index.html", "_static/a.css")}
    assert set(listed) == {".nojekyll", "index.html", *files}
    assert (shown("v0.9.0/index.html"), shown("v0.10.0/index.html")) == ("nine", "ten")
    assert 'url=v0.10.0/"' in shown("index.html")
    assert git("worktree", "list", cwd=checkout).count("\n") == 1


REPOSITORY = "https://github.com/phrasebox/phrasebox"
REFUSED = {
    "tag": ("v9.9.8", REPOSITORY, "the tag is v9.9.8, and the version 9.9.9"),
    "changelog": ("v9.9.9", REPOSITORY, "CHANGELOG.md has no heading"),
    "citation": ("v9.9.9", REPOSITORY, "CITATION.cff has another version"),
    "repository": (
        "v9.9.9",
        "https://github.com/someone/phrasebox",
        "does not say that https://github.com/someone",
    ),
    "dist": ("v9.9.9", REPOSITORY, "dist/ has no sdist"),
    "": ("v9.9.9", REPOSITORY, ""),
}


@pytest.mark.parametrize("missing", REFUSED)
def test_a_release_whose_parts_disagree_is_refused(checkout: Path, missing: str) -> None:
    """The version is that of a stand-in for hatchling: no environment is set up here."""
    tag, repository, message = REFUSED[missing]
    program = checkout / ".venv" / "bin" / "hatchling"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 9.9.9\n")
    program.chmod(0o700)
    date = "unreleased" if missing == "changelog" else "2026-12-01"
    (checkout / "CHANGELOG.md").write_text(f"# Changelog\n\n## 9.9.9 ({date})\n")
    if missing != "citation":
        (checkout / "CITATION.cff").write_text("version: 9.9.9\n")
    (checkout / "dist").mkdir()
    for name in ("phrasebox-9.9.9.tar.gz", "phrasebox-9.9.9-py3-none-any.whl"):
        if missing != "dist":
            (checkout / "dist" / name).touch()
    done = subprocess.run(
        [checkout / ".ci" / "release", tag, repository], capture_output=True, text=True, check=False
    )
    assert (done.returncode, message in done.stderr) == (int(bool(missing)), True), done.stderr
