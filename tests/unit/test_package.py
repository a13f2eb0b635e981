"""Import cost, doctests, the error budget itself, sede info."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest
import torch

import sede_kernels
from sede_kernels import info, testing


def test_import_touches_no_device_and_no_triton() -> None:
    code = (
        "import sys, sede_kernels, torch;"
        "assert 'triton' not in sys.modules, 'triton';"
        "assert not {'sede_kernels.training', 'sede_kernels.study'} & set(sys.modules);"
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def _public_modules() -> list[str]:
    skip = ("sede_kernels.backends.triton", "sede_kernels.integrations", "sede_kernels.training",
            "sede_kernels._bench", "sede_kernels._cpu")  # fmt: skip
    names = ["sede_kernels"]
    for module in pkgutil.walk_packages(sede_kernels.__path__, "sede_kernels."):
        if not module.name.startswith(skip):
            names.append(module.name)
    return names


@pytest.mark.parametrize("name", _public_modules())
def test_doctests(name) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_every_public_name_has_a_docstring_with_an_example() -> None:
    for name in sede_kernels.__all__:
        item = getattr(sede_kernels, name)
        assert item.__doc__, name
        if callable(item) and name not in ("BackendUnavailableError", "InfoNCEStats", "Recalls"):
            assert ">>>" in item.__doc__, name


def test_budget_refuses_what_it_should() -> None:
    truth = torch.tensor([1.0, 2.0, float("inf")], dtype=torch.float64)
    assert testing.relative_error(truth.float(), truth) == 0.0
    assert testing.relative_error(torch.tensor([1.0, 2.0, float("nan")]), truth) == float("inf")
    off = truth.float() * torch.tensor([1.001, 1.0, 1.0])
    with pytest.raises(AssertionError, match="the budget is"):
        testing.assert_within_budget(off, truth)
    testing.assert_within_budget(off, truth, eager=off)
    with pytest.raises(ValueError, match="like truth"):
        testing.relative_error(truth[:2], truth)


def test_info_prints_and_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([]) == 0
    text = capsys.readouterr().out
    assert "sede-kernels" in text and "torch" in text and "cuda" in text
    assert info.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["backends"]) == set(sede_kernels.available_backends())
