"""A process whose forked children and grandchildren call every kernel, for test_cpu_fork.

Mode ``imported``: the package is there before the forks; a child each before anything has threads,
after torch has threads, and after the kernels ran. Mode ``late``: torch alone had threads, and only
the child imports the package.
"""

import os
import signal
import sys
from pathlib import Path

import torch

QUERY, BANK = torch.randn(40, 64), torch.randn(20_000, 64)
REGIONS, WORDS = torch.randn(48, 36, 64), torch.randn(50, 12, 64)


def kernels() -> dict[str, torch.Tensor]:
    """Results of the native kernels alone, each on enough work for two threads."""
    from sede_kernels.backends.cpu import bank_lse, batch_lse, hardest
    from sede_kernels.types import Bank, Match, Want

    scales, keys = torch.tensor([14.0]), BANK[:2048]
    found = bank_lse.bank_lse(QUERY, Bank(BANK), scales, Match(), Want((0,)))
    batch = batch_lse.batch_lse(keys, keys, scales, Match(), Want(), keep=False)
    _, grad = batch_lse.batch_lse_backward(
        batch.lse, batch.lse, batch.kept, keys, keys, scales, scales, Match()
    )
    best = hardest.hardest(QUERY, Bank(BANK), None, k=3)
    return {"bank_lse": found.acc, "batch_lse": grad, "hardest": best.indices.float()}


def every_kernel() -> dict[str, torch.Tensor]:
    """What users call, with torch's own parallel loops around the kernels."""
    import sede_kernels as sede

    query = QUERY.clone().requires_grad_()
    sede.weighted_info_nce(query, QUERY, BANK).backward()
    bank = sede.MemoryBank(20_000, 64)
    bank.enqueue(BANK)
    return kernels() | {
        "loss": query.grad,
        "similarity": sede.cross_attention_similarity(REGIONS, WORDS),
        "pairs": sede.cross_attention_pairs(REGIONS[:, None], WORDS[:48, None]),
        "erase": sede.attention_erase(BANK.exp())[0],
        "enqueue": bank.rows,
    }


def in_child(run, path: Path, generations: int = 2) -> None:
    """Call ``run`` in a child and in a child of it; leave each one's results in a file."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a deadlock must not outlive the test
        torch.save(run(), path)
        if generations > 1:
            in_child(run, path.with_suffix(".grandchild"), generations - 1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        os._exit(1)


def main(mode: str, folder: Path) -> None:
    torch.set_num_threads(2)
    if mode == "late":
        BANK.exp()
        in_child(kernels, folder / "late.child")
        want = kernels()
    else:
        import sede_kernels  # noqa: F401

        in_child(every_kernel, folder / "none.child")
        BANK.exp()
        in_child(every_kernel, folder / "torch.child")
        want = every_kernel()
        in_child(every_kernel, folder / "kernels.child")
    for path in sorted(folder.iterdir()):
        for name, value in torch.load(path).items():
            print(path.name, name, "same" if torch.equal(want[name], value) else "differs")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1], Path(sys.argv[2]))
