"""gather_keys with real processes: ragged batches arrive whole, in rank order, on every rank."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sede_kernels
from sede_kernels.distributed import gather_keys

WORLD = 3


@pytest.mark.slow
def test_banks_of_all_ranks_stay_equal(tmp_path) -> None:
    package = str(Path(sede_kernels.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "GLOO_SOCKET_IFNAME": "lo"}
    worker = Path(__file__).with_name("gather_worker.py")
    outs = [tmp_path / f"rank{rank}.json" for rank in range(WORLD)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(WORLD), str(tmp_path / "meeting"), out],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    for process in workers:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    found = [json.loads(out.read_text()) for out in outs]
    # 15 keys in rank order through a ring of 7: the last seven, the ring pointer at 15 % 7 = 1.
    order = [0, 0, 2, 2, 2, 11, 11, 11, 12, 12, 20, 20, 20, 21, 21]
    ids = [0] * 7
    for position, value in enumerate(order):
        ids[position % 7] = value
    rest = {"alone": 3, "nothing": None, "gloo": []}  # no thread outlives the process group
    for bank in found:
        assert bank == {"rows": found[0]["rows"], "ids": ids, **rest}


def test_without_a_process_group_nothing_changes() -> None:
    keys, ids = torch.randn(3, 2), torch.arange(3)
    assert gather_keys(keys, ids) == (keys, ids)
    with pytest.raises(ValueError, match=r"ids must be \(3,\), one per row, got \(2,\)"):
        gather_keys(keys, ids[:2])
