"""What pyproject.toml, the citation, the workflows and the wheel say agrees."""

import re
import subprocess
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

from tests.install.conftest import ROOT

tomllib = pytest.importorskip("tomllib")

#: Stands for the repository's address, and is replaced in every place at once.
PLACEHOLDER = "example.invalid"
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def text(name: str) -> str:
    if not (ROOT / name).is_file():
        pytest.skip(f"no {name} here")
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def pyproject() -> dict:
    return tomllib.loads(text("pyproject.toml"))


def test_addresses_agree_and_are_placeholders_everywhere_or_nowhere(pyproject: dict) -> None:
    urls = pyproject["project"]["urls"]
    home = urls["Repository"]
    assert all(url.startswith(home) for url in urls.values())
    citation = text("CITATION.cff")
    assert re.search(r"^repository-code: (\S+)$", citation, re.MULTILINE)[1] == home
    if PLACEHOLDER not in home:
        for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"):
            assert PLACEHOLDER not in text(name), name


def test_the_citation_is_of_this_version(pyproject: dict) -> None:
    version = re.search(r"^version: (\S+)$", text("CITATION.cff"), re.MULTILINE)[1]
    assert version == pyproject["project"]["version"]


def test_extras_are_ranges_and_only_tools_are_pinned(pyproject: dict) -> None:
    extras = pyproject["project"]["optional-dependencies"]
    for name, requirements in extras.items():
        pinned = [r for r in requirements if "==" in r.partition(";")[0]]
        assert name == "dev" or not pinned, (name, pinned)
    (triton,) = extras["triton"]
    assert triton in extras["test"], "torch brings its own Triton: no newer one may be asked for"


def test_the_same_pythons_are_classified_built_and_tested(pyproject: dict) -> None:
    project = pyproject["project"]
    stem = "Programming Language :: Python :: 3."
    classified = [c.rpartition(" ")[2] for c in project["classifiers"] if c.startswith(stem)]
    assert classified == PYTHONS
    assert project["requires-python"] == f">={PYTHONS[0]}"
    built = pyproject["tool"]["cibuildwheel"]["build"].split()
    assert built == [f"cp{version.replace('.', '')}-*" for version in PYTHONS]
    tested = re.findall(r'python: "([\d.]+)"', text(".github/workflows/ci.yml"))
    assert {PYTHONS[0], PYTHONS[-1]} <= set(tested) <= set(PYTHONS)


def test_the_wheels_of_the_newest_python_are_built() -> None:
    """cibuildwheel leaves a Python out, without a word, that it does not know yet."""
    used = re.search(r"pypa/cibuildwheel@v(\d+)\.(\d+)", text(".github/workflows/release.yml"))
    assert (int(used[1]), int(used[2])) >= (3, 1), "the first with CPython 3.14"
    assert PYTHONS[-1] == "3.14"


@pytest.mark.parametrize("name", ["ci", "release"])
def test_workflows_run_only_scripts_that_run_here(name: str) -> None:
    commands = re.findall(r"^ +- run: (.+)$", text(f".github/workflows/{name}.yml"), re.MULTILINE)
    assert commands
    for command in commands:
        script = re.match(r"bash (\.ci/[\w-]+)( |$)", command)
        assert script, command
        subprocess.run(["bash", "-n", str(ROOT / script[1])], check=True)


@pytest.mark.parametrize(
    ("tag", "heading", "status", "says"),
    [
        pytest.param("v1.2.3", "## [1.2.3] - 2026-01-31", 0, "v1.2.3: version", id="right"),
        pytest.param("v1.2.4", "## [1.2.3] - 2026-01-31", 1, "the tag is v1.2.4", id="other"),
        pytest.param("v1.2.3", "## [1.2.3]", 1, "CHANGELOG.md has no section", id="no-date"),
        pytest.param("main", "## [Unreleased]", 0, "nothing to check", id="a-branch"),
    ],
)
def test_a_tag_must_be_the_version(
    tmp_path: Path, tag: str, heading: str, status: int, says: str
) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "tag").write_text(text(".ci/tag"))
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n")
    words = ["bash", str(tmp_path / ".ci" / "tag"), tag]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_the_wheel_holds_library_suite_and_notices_and_nothing_else(pure_wheel: Path) -> None:
    with zipfile.ZipFile(pure_wheel) as archive:
        names = archive.namelist()
        (info,) = {n.partition("/")[0] for n in names if ".dist-info/" in n}
        metadata = BytesParser().parsebytes(archive.read(f"{info}/METADATA"))
        assert b"pybind11" in archive.read(f"{info}/licenses/LICENSES/pybind11.txt")
    assert {n.partition("/")[0] for n in names} == {"sede_kernels", info}
    assert metadata["Description-Content-Type"] == "text/markdown"
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    home = re.search(r'^Repository = "(.+)"$', text("pyproject.toml"), re.MULTILINE)[1]
    assert len(links) > 20 and f"{home}/raw/main/docs/images/search_results.png" in links
    for link in links:
        assert link.startswith(home), link
        assert (ROOT / re.sub(r".*/(raw|blob)/main/", "", link)).exists(), link
    assert metadata["Author"] == "The sede-kernels authors"
    assert metadata.get_all("License-File") == ["LICENSE", "LICENSES/pybind11.txt"]
    assert "sede_kernels/_bench/run.py" in names
    assert "sede_kernels/py.typed" in names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "sede_kernels").rglob("*.py")}
    tables = {str(path.relative_to(ROOT)) for path in (ROOT / "sede_kernels").rglob("*.json")}
    assert len(tables) >= 10
    assert sources | tables <= set(names)


def test_the_wheel_check_names_what_is_wrong(bare, pure_wheel: Path, tmp_path: Path) -> None:
    script = ROOT / ".ci" / "check_wheel.py"
    if not script.is_file():
        pytest.skip("no .ci here")
    with zipfile.ZipFile(pure_wheel) as archive:
        archive.extractall(tmp_path)
    words = [str(bare.python), str(script)]
    done = subprocess.run(
        words, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the wheel has no usable native module: the native module is not built" in done.stderr
