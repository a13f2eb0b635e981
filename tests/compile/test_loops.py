"""The loop over the bank stays as short as it was made: its oracle is the compiler's own code."""

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
from sede_kernels.backends.triton import interpreting

if interpreting():
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)
from sede_kernels.backends.triton import loops
from sede_kernels.backends.triton.compile_report.bank_cases import cases
from sede_kernels.backends.triton.compile_report.resources import disassemble


def test_a_loop_ends_with_its_own_branch_and_holds_matrix_instructions():
    code = """
        /*0010*/ IADD3 R0, R0, 1 ;
        /*0020*/ HGMMA.64x64x16.F32 R2, R4 ;
        /*0030*/ @!UP0 BRA 0x20 ;
        /*0040*/ MUFU.EX2 R5, R5 ;
        /*0050*/ BRA 0x40 ;
        /*0060*/ BRA 0x10 ;
    """
    assert loops.loop_instructions(code) == {"HGMMA": 1, "BRA": 1}
    assert not loops.loop_instructions("/*0010*/ BRA 0x10 ;")


def test_no_single_conversions_and_less_work_with_a_fixed_maximum():
    found = {}
    for case in cases("sm_90"):
        variant = case.name.split()[1]
        if variant in ("256/lean", "256/static") and variant not in found:
            found[variant] = loops.loop_instructions(disassemble(case))
    lean, static = found["256/lean"], found["256/static"]
    assert lean["HGMMA"] == static["HGMMA"] > 0
    assert lean["F2F"] == static["F2F"] == 0
    assert lean["MUFU"] > static["MUFU"] > 0
    assert lean["FMUL"] > 100 > static["FMUL"], "the accumulator is rescaled, or is not"
