"""Runs functions on gloo processes and hands back what each rank returns."""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Work = Callable[[int, Path], Any]


def _main(rank: int, works: dict[str, Work], world: int, folder: str, seconds: float) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=seconds)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, timeout=patience, rank=rank, world_size=world)
    found = {name: work(rank, Path(folder)) for name, work in works.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def run_ranks(
    works: dict[str, Work], world: int, folder: Path, seconds: float = 600
) -> list[dict[str, Any]]:
    """What the works return on each rank, under their names."""
    mp.spawn(_main, args=(works, world, str(folder), seconds), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
