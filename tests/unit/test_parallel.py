"""Criteria with banks inside DDP and FSDP, with real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sede_kernels
from sede_kernels import SEDELoss
from sede_kernels.distributed import keep_banks_local

WORLD = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    package = str(Path(sede_kernels.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": package, "GLOO_SOCKET_IFNAME": "lo"}
    worker = Path(__file__).with_name("parallel_worker.py")
    outs = [folder / f"rank{rank}.json" for rank in range(WORLD)]
    workers = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(WORLD), str(folder / "meeting"), out],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    errors = [process.communicate(timeout=240)[1] for process in workers]
    assert not any(process.returncode for process in workers), "\n".join(errors)
    return [json.loads(out.read_text()) for out in outs]


def own_ids(rank: int, steps: int = 3) -> list[int]:
    ids = [100 * rank + 10 * step + n for step in range(steps) for n in range(4)]
    return ids + [-1] * (12 - len(ids))


def test_ddp_overwrites_banks_and_the_bank_says_so_once(ranks) -> None:
    """The behaviour of DDP that makes ``keep_banks_local`` necessary."""
    assert ranks[0]["plain"]["ids"] == own_ids(0) and not ranks[0]["plain"]["warned"]
    assert ranks[1]["plain"]["ids"] == own_ids(0)[:8] + own_ids(1)[8:]
    warned = ranks[1]["plain"]["warned"]
    assert len(warned) == 2  # one a bank
    assert "call sede_kernels.distributed.keep_banks_local(model) before you wrap" in warned[0]


def test_banks_kept_local_hold_the_keys_of_their_rank(ranks) -> None:
    for rank, found in enumerate(ranks):
        assert found["local"]["ids"] == own_ids(rank)
        assert found["local"]["steps"] == 3 and not found["local"]["warned"]
    first, second = (found["local"] for found in ranks)
    assert first["temperature"] == second["temperature"] != 0.0  # averaged, inside DDP
    assert first["running_mean"] == second["running_mean"]  # other buffers are broadcast as ever
    banks = ("image_bank", "text_bank")
    buffers = ("rows", "row_scale", "ids", "ptr", "count", "rejected", "home")
    assert sorted(ranks[0]["names"]) == sorted(
        ["criterion.steps", *(f"criterion.{bank}.{name}" for bank in banks for name in buffers)]
    )


def test_sharding_takes_the_learnable_scalars_and_leaves_the_banks(ranks) -> None:
    for rank, found in enumerate(ranks):
        assert found["fully_shard"]["ids"] == own_ids(rank)
        assert found["fully_shard"]["same"] and not found["fully_shard"]["warned"]
        assert found["fsdp"]["ids"] == own_ids(rank, steps=2)
        assert found["fully_shard"]["buffers"] == 13
    first, second = (found["fully_shard"] for found in ranks)
    assert first["temperature"] == second["temperature"]


def test_keep_banks_local_adds_to_what_is_ignored_already() -> None:
    model = nn.ModuleDict({"loss": SEDELoss(4, 2), "other": nn.BatchNorm1d(2)})
    model._ddp_params_and_buffers_to_ignore = ["other.running_mean"]
    assert keep_banks_local(model) is model
    names = model._ddp_params_and_buffers_to_ignore
    assert names[0] == "other.running_mean" and "loss.image_bank.rows" in names
    assert "other.running_var" not in names
    assert keep_banks_local(model)._ddp_params_and_buffers_to_ignore == names
    compiled = torch.compile(nn.ModuleDict({"loss": SEDELoss(4, 2)}))
    keep_banks_local(compiled)
    ignored = set(compiled._ddp_params_and_buffers_to_ignore)
    assert {name for name, _ in compiled.named_buffers()} == ignored
    with pytest.raises(TypeError, match="model must be a module, got int"):
        keep_banks_local(3)
