"""What a loss of a sharded bank sends and how long it takes, beside the cost model.

    python -m benchmarks.exchange --write

For 1, 2 and 4 gloo processes on this machine, one thread each: the bytes that each collective of a
loss receives and sends, and the formulas of docs/distributed.md. The bytes must be equal.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from sede_kernels import ShardedMemoryBank, weighted_info_nce
from sede_kernels.backends import shards

from . import flags
from .waiting import write_record

WORLDS = (1, 2, 4)
BATCH, DIM, SIZE = 128, 256, 16_384  # of a rank, columns, slots of all ranks
EXPONENTS = 2


def predicted(world: int) -> dict[str, int]:
    """Bytes of a rank by the cost model: fp32 queries with ids, hardness, no margin."""
    others = world - 1
    return {
        "queries": others * BATCH * (DIM * 4 + 8),
        "maxima": 8 * EXPONENTS * others * BATCH,
        "sums": 4 * others * BATCH * (DIM + EXPONENTS + 1),
    }


def counted(counts: Counter[str], world: int) -> AbstractContextManager[Any]:
    """Replaces the collectives by ones that count what a rank receives, or sends, of the others.

    A ring all_reduce sends and receives (W - 1) / W of its buffer twice, and the model counts the
    bytes of both directions together.
    """
    others = (world - 1) / world
    gather, scatter, reduce = shards.gather_into, shards.sum_into, dist.all_reduce

    def gather_into(out: Tensor, own: Tensor, group: Any) -> None:
        name = "queries" if own.dtype == torch.uint8 else "sizes"
        counts[name] += int(out.nbytes * others)
        gather(out, own, group)

    def sum_into(out: Tensor, every: Tensor, group: Any) -> None:
        counts["sums"] += int(every.nbytes * others)
        scatter(out, every, group)

    def all_reduce(value: Tensor, op: Any = dist.ReduceOp.SUM, **more: Any) -> Any:
        maximum = op == dist.ReduceOp.MAX and value.numel() > 1
        counts["maxima" if maximum else "mean"] += int(2 * value.nbytes * others)
        return reduce(value, op, **more)

    stack = ExitStack()
    stack.enter_context(mock.patch.multiple(shards, gather_into=gather_into, sum_into=sum_into))
    stack.enter_context(mock.patch.object(dist, "all_reduce", all_reduce))
    return stack


def loss_of(query: Tensor, bank: ShardedMemoryBank, ids: Tensor) -> Tensor:
    """One loss with its gradient."""
    leaf = query.clone().requires_grad_()
    loss = weighted_info_nce(leaf, query, bank, hardness=4.0, query_ids=ids)
    loss.backward()
    return loss.detach()


def _rank(rank: int, world: int, folder: str, rounds: int) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    torch.manual_seed(rank)
    bank = ShardedMemoryBank(SIZE, DIM)
    bank.enqueue(torch.randn(SIZE // world, DIM), torch.arange(SIZE // world))
    query, ids = torch.nn.functional.normalize(torch.randn(BATCH, DIM)), torch.arange(BATCH)
    loss_of(query, bank, ids)
    counts: Counter[str] = Counter()
    with counted(counts, world):
        loss_of(query, bank, ids)
    times = []
    for _ in range(rounds):
        dist.barrier()
        start = time.perf_counter()
        loss_of(query, bank, ids)
        times.append(time.perf_counter() - start)
    torch.save((dict(counts), times), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def measured(world: int, rounds: int) -> dict[str, Any]:
    """Bytes of the first rank, and the median time of the slowest."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world, folder, rounds), nprocs=world)
        found = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(world)]
    slowest = [max(turn) for turn in zip(*(times for _, times in found), strict=True)]
    counts, model = found[0][0], predicted(world)
    bytes_of = {name: counts.get(name, 0) for name in (*model, "sizes", "mean")}
    return {
        "processes": world,
        "bytes": bytes_of,
        "bytes_of_the_model": model,
        "equal": all(bytes_of[name] == model[name] for name in model),
        "bank_bytes_a_rank": SIZE // world * DIM * 4,
        "flops_a_rank": 4 * BATCH * SIZE * DIM,
        "ms": round(1e3 * statistics.median(slowest), 3),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write a record where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=flags.whole(1, 10_000), default=30)
    parser.add_argument("--write", action="store_true", help="keep a record")
    options = parser.parse_args(argv)
    cases = [measured(world, options.rounds) for world in WORLDS]
    for case in cases:
        print(case)
    if options.write:
        sizes = {"B": BATCH, "D": DIM, "K": SIZE, "exponents": EXPONENTS, "rounds": options.rounds}
        write_record("exchange", {**sizes, "cases": cases})
    return 0 if all(case["equal"] for case in cases) else 1


if __name__ == "__main__":
    raise SystemExit(main())
