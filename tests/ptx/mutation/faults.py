"""Single changes of a PTX text that a compiler's fault could make, by what they spoil."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_GUARD = r"^(\s*(?:@!?%p\d+ )?)"


@dataclass(frozen=True)
class Kind:
    """A change of one line.

    Attributes:
        group: what it spoils.
        name: what it does.
        pattern: the lines that it is for.
        result: the line after it, as ``re.sub`` takes it.
    """

    group: str
    name: str
    pattern: str
    result: str

    def changed(self, line: str) -> str | None:
        """The line after it; None where it is not for this line or changes nothing."""
        new, count = re.subn(self.pattern, self.result, line)
        if not count:
            return None
        new = re.sub(r"\(\((\d+) \+ (\d+)\)\)", lambda m: str(int(m[1]) + int(m[2])), new)
        new = re.sub(r"\(\((\d+) / 2\)\)", lambda m: str(int(m[1]) // 2), new)
        return new if new.split() != line.split() else None


_REGISTER = r"(%\w+)"
_THREE = rf"{_REGISTER}, {_REGISTER}, {_REGISTER};"
KINDS = (
    Kind("barriers", "bar.sync gone", _GUARD + r"bar\.sync\s+0;", r"\1"),
    Kind("barriers", "bar.warp.sync gone", _GUARD + r"bar\.warp\.sync\s+\S+;", r"\1"),
    Kind("waits", "cp.async.wait_group gone", _GUARD + r"cp\.async\.wait_group\s+\S+;", r"\1"),
    Kind("waits", "cp.async.wait_group for one less",
         _GUARD + r"cp\.async\.wait_group\s+(?:0x)?(\d);", r"\1cp.async.wait_group ((\2 + 1));"),
    Kind("waits", "cp.async.commit_group gone", _GUARD + r"cp\.async\.commit_group\s*;", r"\1"),
    Kind("waits", "wgmma.wait_group gone", _GUARD + r"wgmma\.wait_group\.sync\.aligned \d;", r"\1"),
    Kind("waits", "wgmma.wait_group for one less",
         _GUARD + r"wgmma\.wait_group\.sync\.aligned (\d);",
         r"\1wgmma.wait_group.sync.aligned ((\2 + 1));"),
    Kind("waits", "mbarrier not waited for",
         _GUARD + r"mbarrier\.try_wait\S*\s+(\w+), .*;", r"\1setp.eq.u32 \2, 0, 0;"),
    Kind("waits", "half of the bytes expected",
         r"(mbarrier\.arrive\.expect_tx\S* _, \[%r\d+\]), (\d+);", r"\1, ((\2 / 2));"),
    Kind("fences", "fence.proxy.async gone", _GUARD + r"fence\.proxy\.async\S*;", r"\1"),
    Kind("fences", "wgmma.fence gone", _GUARD + r"wgmma\.fence\.sync\.aligned;", r"\1"),
    Kind("fences", "mbarrier.init gone", _GUARD + r"mbarrier\.init\S* .*;", r"\1"),
    Kind("masks", "and.pred is or.pred", r"\band\.pred\b", "or.pred"),
    Kind("masks", "guard of an access gone",
         r"^\s*@!?%p\d+ ((?:ld|st)\.global|cp\.async)", r"\t\1"),
    Kind("masks", "guard of an access turned", r"^\s*@(%p\d+ (?:ld\.|st\.|cp\.async))", r"\t@!\1"),
    Kind("masks", "comparison turned", r"\bsetp\.lt\.s32\b", "setp.ge.s32"),
    Kind("masks", "choice turned",
         r"(selp\.\w+\s+%\w+), ([%\w]+), ([%\w]+), (%p\d+);", r"\1, \3, \2, \4;"),
    Kind("addresses", "global, 4 bytes on", r"(\.global\S*.*\[ ?%rd\d+) \+ (\d+)",
         r"\1 + ((\2 + 4))"),
    Kind("addresses", "shared, another offset",
         r"(\.shared\.\S*\s.*\[ ?%r\d+)( ?)(?:\+ ?(\d+) ?)?\]", r"\1+16]"),
    Kind("addresses", "ldmatrix, 16 bytes on", r"(ldmatrix.*\[%r\d+)(?:\+(\d+))?\]", r"\1+16]"),
    Kind("addresses", "tile of other coordinates", r"\{(%r\d+), (%r\d+)\}\]", r"{\2, \1}]"),
    Kind("addresses", "shift by one less", r"(shl\.b\d+\s+%\w+, %\w+), 7;", r"\1, 6;"),
    Kind("operands", "difference turned", rf"(sub\.(?:f|s)\d+)\s+{_THREE}", r"\1 \2, \4, \3;"),
    Kind("operands", "addend swapped with a factor",
         rf"(fma\.rn\.\S+)\s+(%\w+), (%\w+), {_REGISTER}, {_REGISTER};", r"\1 \2, \3, \5, \4;"),
    Kind("operands", "quotient turned", rf"(div\.\S+)\s+{_THREE}", r"\1 \2, \4, \3;"),
    Kind("operands", "sum is a difference", r"\badd\.f32\b", "sub.f32"),
    Kind("operands", "another lane", r"(shfl\.sync\.bfly\.b32\s+%\w+, %\w+), 1,", r"\1, 2,"),
    Kind("operands", "fragments swapped", r"(mma\.sync.*?\}.*?)\{ ?(%\w+), (%\w+)", r"\1{ \3, \2"),
    Kind("operands", "operands of a product swapped",
         r"(wgmma\.mma_async.*\}), (%rd\d+), (%rd\d+),", r"\1, \3, \2,"),
)  # fmt: skip
GROUPS = tuple(dict.fromkeys(kind.group for kind in KINDS))


@dataclass(frozen=True)
class Fault:
    """A change of a line of a text."""

    kind: Kind
    line: int
    before: str
    after: str

    def applied(self, text: str) -> str:
        """The text with the fault in it."""
        lines = text.splitlines()
        lines[self.line - 1] = self.after
        return "\n".join(lines) + "\n"


def faults_of(text: str, executed: set[int], kinds: tuple[Kind, ...] = KINDS) -> Iterator[Fault]:
    """Every fault in the executed lines; lines count from 1."""
    for number, line in enumerate(text.splitlines(), 1):
        if number in executed:
            for kind in kinds:
                after = kind.changed(line)
                if after is not None:
                    yield Fault(kind, number, line.strip(), after)
