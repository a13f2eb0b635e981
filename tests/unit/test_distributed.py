"""gather_keys with real processes: ragged batches arrive whole, in rank order, on every rank."""

import multiprocessing
import os
import socket

import pytest
import torch

from sede_kernels import MemoryBank
from sede_kernels.distributed import gather_keys


def _worker(rank: int, world: int, port: int, results) -> None:
    import torch.distributed as dist

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    bank = MemoryBank(7, 3, normalize=False)
    for step in range(3):
        rows = [2, 0, 3][(rank + step) % 3]
        keys = torch.full((rows, 3), float(10 * step + rank))
        every, ids = gather_keys(keys, torch.full((rows,), 10 * step + rank))
        bank.enqueue(every, ids)
    alone, nothing = gather_keys(torch.ones(1, 2))
    results.put((rank, bank.rows.tolist(), bank.ids.tolist(), alone.shape[0], nothing))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_banks_of_all_ranks_stay_equal() -> None:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.Queue()
    workers = [context.Process(target=_worker, args=(r, 3, port, results)) for r in range(3)]
    for worker in workers:
        worker.start()
    found = sorted(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    ids = found[0][2]
    # 15 keys in rank order through a ring of 7: the last seven, the ring pointer at 15 % 7 = 1.
    order = [0, 0, 2, 2, 2, 11, 11, 11, 12, 12, 20, 20, 20, 21, 21]
    expected = [0] * 7
    for position, value in enumerate(order):
        expected[position % 7] = value
    assert ids == expected
    for _, rows, other_ids, alone, nothing in found:
        assert (rows, other_ids) == (found[0][1], ids)
        assert (alone, nothing) == (3, None)


def test_without_a_process_group_nothing_changes() -> None:
    keys, ids = torch.randn(3, 2), torch.arange(3)
    assert gather_keys(keys, ids) == (keys, ids)
    with pytest.raises(ValueError, match=r"ids must be \(3,\), one a key, got \(2,\)"):
        gather_keys(keys, ids[:2])
