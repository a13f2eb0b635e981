"""Single changes of the PTX that nvcc writes: the kinds of ``faults`` as its texts spell them."""

from tests.ptx.mutation.faults import KINDS, Kind

_SAME = {
    "bar.sync gone", "bar.warp.sync gone", "cp.async.wait_group gone",
    "cp.async.wait_group for one less", "cp.async.commit_group gone", "and.pred is or.pred",
    "difference turned", "addend swapped with a factor", "sum is a difference",
}  # fmt: skip
KINDS_OF_NVCC = (
    *(kind for kind in KINDS if kind.name in _SAME),
    Kind("masks", "branch turned", r"^\s*@(%p\d+) bra", r"\t@!\1 bra"),
    Kind("masks", "comparison turned", r"\bsetp\.lt\.(s32|s64|u32|u64)\b", r"setp.ge.\1"),
    Kind("masks", "comparison of numbers turned", r"\bsetp\.gt\.f32\b", "setp.le.f32"),
    Kind("masks", "choice turned", r"(selp\.\w+\s+%\w+), ([%\w]+), ([%\w]+), (%\w+);",
         r"\1, \3, \2, \4;"),
    Kind("addresses", "global, 4 bytes on", r"((?:ld|st)\.global\S*\s.*\[%rd\d+)(?:\+\d+)?\]",
         r"\1+4]"),
    Kind("addresses", "shared, another offset", r"((?:ld|st)\.shared\S*\s.*\[%r\d+)(?:\+\d+)?\]",
         r"\1+16]"),
    Kind("addresses", "ldmatrix, 16 bytes on", r"(ldmatrix.*\[%r\d+)\]", r"\1+16]"),
    Kind("addresses", "shift by two", r"(shl\.b\d+\s+%\w+, %\w+), ([3-9]);", r"\1, 2;"),
    Kind("operands", "another lane", r"(shfl\.sync\.bfly\.b32\s+\S+, %\w+), (?!8)\d+,", r"\1, 8,"),
    Kind("operands", "fragments swapped", r"(mma\.sync.*?\},\s*)\{(%\w+),(%\w+)", r"\1{\3,\2"),
    Kind("operands", "larger is smaller", r"\bmax\.f32\b", "min.f32"),
    Kind("operands", "product is a sum", r"\bmul\.f32\b", "add.f32"),
)  # fmt: skip
