"""``python -m tests.ptx.summary``: the committed records as the tables of docs/ptx.md."""

from collections.abc import Iterator
from typing import Any

from tests.ptx import suites
from tests.ptx.kernels import record
from tests.ptx.mutation import score


def _executed(lines: list[dict[str, Any]], version: str) -> Iterator[str]:
    for architecture in record.ARCHITECTURES:
        of = [x for x in lines if (x["triton"], x["architecture"]) == (version, architecture)]
        if of:
            kernels = {name for line in of for name in line["kernels"]}
            worst = max(of, key=lambda line: line["worst_share_of_budget"])
            harmless = sorted({kind for line in of for kind in line["faults"]})
            yield (
                f"| {version} | {architecture} | {len(of)} | {len(kernels)} "
                f"| {sum(line['warp_instructions'] for line in of) / 1e6:.0f} M "
                f"| {worst['worst_share_of_budget']:.2f} ({worst['problem']}) "
                f"| {', '.join(harmless) or 'none'} |"
            )


def executed() -> Iterator[str]:
    """A row for each version of Triton and architecture: what ran, and how far from fp64."""
    lines = record.load(record.FOLDER)
    yield (
        "| Triton | class | problems x entries | kernels | warp instructions "
        "| largest error in budgets | faults, all harmless |"
    )
    yield "| --- | --- | --: | --: | --: | --- | --- |"
    for version in reversed(record.versions(lines)):
        yield from _executed(lines, version)


def others() -> Iterator[str]:
    """A row for each architecture: the interpreter's and the GPU's tests."""
    yield "| tests/interpret and tests/gpu | files | passed | skipped | failed | minutes |"
    yield "| --- | --: | --: | --: | --: | --: |"
    for architecture in suites.ARCHITECTURES:
        of = [x for x in suites.load(suites.FILE) if x["architecture"] == architecture]
        yield (
            f"| {architecture} | {len(of)} | {sum(line['passed'] for line in of)} "
            f"| {sum(line['skipped'] for line in of)} | {sum(len(line['failed']) for line in of)} "
            f"| {sum(line['seconds'] for line in of) / 60:.0f} |"
        )


def mutations() -> Iterator[str]:
    """A row for each group of faults that were put in."""
    lines = score.load(score.FILE)
    yield "| faults put in | number | noticed | change nothing | missed |"
    yield "| --- | --: | --: | --: | --: |"
    for group in (*score.GROUPS, None):
        of = [line for line in lines if group in (None, line["group"])]
        noticed = sum(bool(line["noticed"]) for line in of)
        same = sum("equivalent" in line for line in of)
        missed = len(of) - noticed - same
        yield f"| {group or 'all'} | {len(of)} | {noticed} | {same} | {missed} |"


def main() -> None:
    """Print them."""
    for table in (executed, others, mutations):
        print("\n".join(table()), end="\n\n")


if __name__ == "__main__":
    main()
