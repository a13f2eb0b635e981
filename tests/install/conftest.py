"""A copy of the sources, wheels of it, and environments that hold nothing else of this package."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: What is built, run or recorded, and no source: names anywhere, and folders of the clone.
IGNORED = (".*", "*.so", "*.egg-info", "__pycache__")
LEFT_OUT = ("build", "dist", "records/ablation", "records/bench")
SETUPTOOLS = "77"  # as pyproject.toml asks


def copy_sources(target: Path) -> Path:
    """The sources alone, with nothing built."""
    if not (ROOT / "setup.py").is_file():
        pytest.skip("no source folder")

    def ignore(folder: str, names: list[str]) -> set[str]:
        left_out = {name for name in names if Path(folder, name) in map(ROOT.joinpath, LEFT_OUT)}
        return left_out | shutil.ignore_patterns(*IGNORED)(folder, names)

    return Path(shutil.copytree(ROOT, target, ignore=ignore))


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment of someone who has set nothing of ours, and started no test."""
    found = {k: v for k, v in os.environ.items() if not k.startswith(("SEDE_", "PYTHON"))}
    return found | variables


def run(words: list[object], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program in a folder; its outcome is for the test to judge."""
    return subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def checked(words: list[object], folder: Path, **variables: str) -> str:
    """A program that must succeed; what it printed."""
    done = run(words, folder, **variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def build_wheel(source: Path, folder: Path, **variables: str) -> Path:
    """``pip wheel`` of a source folder or archive with the packages that are here."""
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    checked([*words, "--no-index", "-w", folder, source], folder.parent, PATH=path, **variables)
    (wheel,) = folder.glob("*.whl")
    return wheel


# An editable install serves what a package lacks, so also the native module of another one.
_NO_EDITABLE = (
    "import sys; sys.meta_path[:] = "
    "[f for f in sys.meta_path if not getattr(f, '__module__', '').startswith('__editable__')]\n"
)


class Environment:
    """A virtual environment that sees the packages of this one, with a wheel of ours before them.

    Attributes:
        python: its interpreter.
        scripts: the folder of its commands.
        package: where the wheel's package lies.
    """

    def __init__(self, folder: Path, wheel: Path | None = None) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.scripts = folder / "bin"
        self.python = self.scripts / "python"
        (site,) = folder.glob("lib/python*/site-packages")
        self.package = site / "sede_kernels"
        others = [path for path in sys.path if path.endswith("-packages")]
        lines = [f"import site; site.addsitedir({path!r})\n" for path in others]
        (site / "others.pth").write_text("".join([*lines, _NO_EDITABLE]))
        if wheel is not None:
            install = ["-m", "pip", "install", "-q", "--no-deps", "--no-index"]
            words = [*install, "--ignore-installed", "--prefix", folder, wheel]
            checked([self.python, *words], folder)


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """This environment without an editable install."""
    return Environment(tmp_path_factory.mktemp("bare") / "env")


@pytest.fixture(scope="session")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of SEDE_BUILD_CPU=0."""
    pytest.importorskip("setuptools", minversion=SETUPTOOLS)
    folder = tmp_path_factory.mktemp("pure")
    return build_wheel(copy_sources(folder / "source"), folder / "out", SEDE_BUILD_CPU="0")
