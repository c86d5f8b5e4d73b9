"""What a release uploads: the sdist, the wheel that is built from it, and their page on an index."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.architecture.source import ROOT, tracked

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
REPOSITORY = PYPROJECT["project"]["urls"]["Repository"]
NOT_FOR_EVERYONE = ("stages/model/weights/photo/", "stages/model/weights/generic/")
"""Parts of the paths of what no distribution holds, since its terms are not for everyone."""

LINKS = {"phrasebox/pipeline", "phrasebox/stages"}
"""Links in the repository, which a distribution holds as folders."""

EXTRAS_OF_DEVELOPERS = {"dev", "docs"}


def build(source: Path, out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it, made of the tracked files alone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name, follow_symlinks=False)
    build(source, out)
    build(source, out / "direct", "--wheel")
    return out


@pytest.fixture(scope="module")
def sdist(uploads: Path) -> dict[str, bytes]:
    """Path below the folder of the version -> content."""
    [path] = uploads.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {member.name.split("/", 1)[1]: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in files.items() if file}


def contents(folder: Path) -> dict[str, bytes]:
    """Path in the wheel of a folder -> content."""
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def page(metadata: bytes) -> str:
    """The description in the metadata of a distribution."""
    message = email.message_from_bytes(metadata)
    assert message["Description-Content-Type"] == "text/markdown"
    payload = message.get_payload(decode=True)
    assert isinstance(payload, bytes)
    return payload.decode()


@pytest.mark.slow
def test_the_sdist_holds_the_repository_but_for_what_only_its_host_needs(sdist: dict[str, bytes]) -> None:
    left_out = (".ci/", ".github/", ".locks/", ".pictures/", *NOT_FOR_EVERYONE)
    names = {
        name
        for name in tracked()
        if not name.startswith(left_out) and not any(part in name for part in NOT_FOR_EVERYONE)
    }
    names -= {".dockerignore", ".pre-commit-config.yaml", "Dockerfile", *LINKS}
    names = {f"phrasebox/{name}" if name.startswith(("pipeline/", "stages/")) else name for name in names}
    assert sdist.keys() == names | {".ci/index_page.py", "PKG-INFO"}
    assert {name: sdist[name] for name in names} == {name: (ROOT / name).read_bytes() for name in names}


@pytest.mark.slow
def test_the_sdist_builds_the_wheel_that_the_repository_builds(uploads: Path) -> None:
    assert contents(uploads) == contents(uploads / "direct")


@pytest.mark.slow
def test_the_page_on_an_index_has_no_link_that_leads_nowhere(
    uploads: Path, sdist: dict[str, bytes]
) -> None:
    [metadata] = (value for name, value in contents(uploads).items() if name.endswith("/METADATA"))
    text = page(metadata)
    assert text == page(sdist["PKG-INFO"])
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", text)
    tag = f"v{email.message_from_bytes(metadata)['Version']}"
    there = [
        (mark, link.removeprefix(f"{REPOSITORY}/")) for mark, link in links if link.startswith(REPOSITORY)
    ]
    assert len(there) == len(re.findall(r"\]\(\./", (ROOT / "README.md").read_text("utf-8"))) > 40
    for mark, link in there:
        view = "raw" if mark else "blob"
        assert link.startswith(f"{view}/{tag}/")
        path = link.removeprefix(f"{view}/{tag}/").split("#")[0]
        assert (ROOT / path).exists(), path
    assert [link for _, link in links if not link.startswith("https://")] == []
    assert "git clone URL" not in text


def test_one_extra_holds_all_that_users_may_want() -> None:
    extras = PYPROJECT["project"]["optional-dependencies"]
    [everything] = extras["all"]
    assert everything == f"phrasebox[{','.join(sorted(extras.keys() - {'all', *EXTRAS_OF_DEVELOPERS}))}]"
