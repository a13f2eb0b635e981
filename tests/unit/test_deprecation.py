"""Names on their way out: each warns, names its successor, and goes when it was said to."""

import importlib
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sede_kernels.deprecation import DEPRECATED, warn_deprecated

ROOT = Path(__file__).parents[2]


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def test_nothing_stays_longer_than_was_said() -> None:
    said = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    now = version_of(said[1])
    assert len({entry.name for entry in DEPRECATED}) == len(DEPRECATED)
    for entry in DEPRECATED:
        assert version_of(entry.since) <= now < version_of(entry.gone_in), entry


def test_every_entry_is_warned_of_somewhere() -> None:
    text = "".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "sede_kernels").rglob("*.py")
        if path.name != "deprecation.py"
    )
    assert "warn_deprecated(" in text
    for entry in DEPRECATED:
        assert f'"{entry.name}"' in text, entry


def test_the_warning_names_the_line_that_wrote_the_name() -> None:
    def old_name() -> None:
        warn_deprecated(DEPRECATED[0].name)

    with pytest.warns(DeprecationWarning, match="is deprecated since .* use .*") as caught:
        old_name()
    assert caught[0].filename == __file__
    with pytest.raises(KeyError):
        warn_deprecated("no such entry")


FORMER_MODULES = [
    ("sede_kernels.training.cli", "sede_kernels.cli", "sede_kernels.cli", "usage: sede "),
    (
        "sede_kernels.backends.triton.report",
        "sede_kernels.backends.triton.compile_report",
        "sede_kernels.backends.triton.compile_report.report",
        "usage: python -m sede_kernels.backends.triton.compile_report",
    ),
]


@pytest.mark.parametrize(("name", "instead", "module", "usage"), FORMER_MODULES)
def test_the_former_name_of_a_module_is_the_module(name, instead, module, usage) -> None:
    if "triton" in name:
        pytest.importorskip("triton", reason="Triton is not installed")
    sys.modules.pop(name, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        former = importlib.import_module(name)
    assert former is importlib.import_module(module)
    assert [str(w.message) for w in caught if name in str(w.message)] == [
        f"{name} is deprecated since 0.2 and gone in 0.3: use {instead}."
    ]
    words = [sys.executable, "-m", name, "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert usage in done.stdout
    assert f"DeprecationWarning: {name} is deprecated" in done.stderr
