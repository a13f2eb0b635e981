"""A digest of the compiler report follows the kernel's text and nothing else."""

import importlib.util
import runpy
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from sede_kernels.backends.triton import interpreting

if interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
from sede_kernels.backends.triton.compile_report import report
from sede_kernels.backends.triton.compile_report.text import kernel_text

SOURCE = '''
import triton
import triton.language as tl

SCALE = tl.constexpr(2.0)

@triton.jit
def helper(x):
    """Twice x."""
    return x * SCALE  # exact

@triton.jit
def unused(x):
    return x

@triton.jit
def kernel(p):
    tl.store(p, helper(tl.load(p)))
'''


def _text(folder, source, name="a_kernel"):
    path = folder / f"{name}.py"
    path.write_text(source)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, path))
    module.__spec__.loader.exec_module(module)
    return kernel_text(module.kernel)


@pytest.mark.parametrize(
    "old,new",
    [
        ('"""Twice x."""', '"""Two x."""'),
        ("  # exact", ""),
        ("import triton\n", "import triton\nimport math\n\n\n"),
        ("def unused(x):\n    return x", "def unused(x):\n    return -x"),
        ("tl.load(p)))", "tl.load(p)\n    ))"),
    ],
    ids=["docstring", "comment", "lines above", "another kernel", "line break"],
)
def test_what_does_not_reach_the_compiler_changes_nothing(tmp_path, old, new):
    assert SOURCE.count(old) == 1
    changed = _text(tmp_path, SOURCE.replace(old, new), "elsewhere")
    assert changed == _text(tmp_path, SOURCE)


@pytest.mark.parametrize(
    "old,new",
    [
        ("x * SCALE", "x + SCALE"),
        ("constexpr(2.0)", "constexpr(3.0)"),
        ("helper(tl.load(p))", "-helper(tl.load(p))"),
        ("@triton.jit\ndef kernel", '@triton.jit(do_not_specialize=["p"])\ndef kernel'),
    ],
    ids=["a called kernel", "a constant", "the kernel", "its decorator"],
)
def test_what_reaches_the_compiler_changes_the_text(tmp_path, old, new):
    assert SOURCE.count(old) == 1
    assert _text(tmp_path, SOURCE.replace(old, new), "changed") != _text(tmp_path, SOURCE)


def test_the_former_name_of_the_report_is_the_report(monkeypatch, capsys):
    former = "sede_kernels.backends.triton.report"
    assert importlib.import_module(former) is report
    monkeypatch.setattr(sys, "argv", ["report", "--help"])
    monkeypatch.delitem(sys.modules, former)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(former, run_name="__main__")
    assert end.value.code == 0
    assert "--write" in capsys.readouterr().out
