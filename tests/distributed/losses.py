"""One rank's part of the sharded losses, and how far it is from a whole bank on one process."""

from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from sede_kernels import (
    FragmentBank,
    MemoryBank,
    SEDELoss,
    ShardedFragmentBank,
    ShardedMemoryBank,
    bank_lse,
    hardest_negatives,
    recall_at_k,
    symmetric_info_nce,
    weighted_info_nce,
)
from sede_kernels.bank import BankView
from tests.conftest import unit

SIZE, DIM = 37, 8
ROWS = (3, 0, 5, 2)  # queries of each rank

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"hardness": 5.0},
    "unnormalized": {"hardness": 5.0, "normalize_weights": False},
    "attached": {"hardness": 5.0, "detach_weights": False},
    "attached-unnormalized": {
        "hardness": 5.0,
        "detach_weights": False,
        "normalize_weights": False,
    },
    "debiased": {"hardness": 2.0, "tau_plus": 0.1},
    "focus": {"positive_focus": 1.5},
    "margin": {"margin": -0.2},
    "no-negatives": {"margin": -3.0, "positive_focus": 1.0},
    "limit": {"limit": torch.linspace(-0.4, 0.4, sum(ROWS), dtype=torch.float64)},
    "positive": {"false_negatives": "positive"},
    "keep": {"false_negatives": "keep"},
    "unit-length": {"unit_length": True, "hardness": 3.0},
    "sum": {"reduction": "sum", "positive_focus": 1.0},
    "none": {"reduction": "none", "positive_focus": 1.0},
    "learned": {"hardness": "tensor", "temperature": "tensor"},
    "torch": {"backend": "torch", "hardness": 5.0},
    "reference": {"backend": "reference", "hardness": 5.0, "positive_focus": 1.0},
}
BANKS = {
    "fp64": (torch.float64, torch.float64),
    "fp32": (torch.float32, torch.float32),
    "int8": (torch.float32, torch.int8),
    "bf16": (torch.bfloat16, torch.bfloat16),
}


def of_rank(rank: int) -> slice:
    return slice(sum(ROWS[:rank]), sum(ROWS[: rank + 1]))


def filled(bank: Any, rank: int, keys: Tensor, ids: Tensor) -> Any:
    """Three steps of ragged keys, some too many for the slots of the last ranks."""
    for step in range(3):
        mine = slice(20 * step + 5 * rank, 20 * step + 5 * rank + (rank + step) % 4 * 2)
        bank.enqueue(keys[mine], ids[mine])
    return bank


def banks(rank: int, world: int, group: Any, dtype: torch.dtype, **kwargs: Any) -> Any:
    """The shard here, and all shards as one bank."""
    keys, ids = unit(80, DIM, dtype=torch.float64), torch.randint(0, 12, (80,))
    bank = ShardedMemoryBank(SIZE, DIM, dtype=dtype, group=group, **kwargs)
    share, more = divmod(SIZE, world)
    parts = [
        filled(MemoryBank(share + (r < more), DIM, dtype=dtype), r, keys, ids).view()
        for r in range(world)
    ]
    scale = torch.cat([p.row_scale for p in parts]) if dtype == torch.int8 else None
    whole = BankView(torch.cat([p.rows for p in parts]), scale, torch.cat([p.ids for p in parts]))
    return filled(bank, rank, keys, ids), whole


def gap(found: Tensor, truth: Tensor) -> float:
    """Largest difference, beside the largest number of the truth or 1."""
    if found.shape != truth.shape:
        return float("inf")
    difference = torch.where(found == truth, 0.0, (found - truth).abs().double())
    largest = truth[truth.isfinite()].abs().double()
    scale = torch.cat([largest.flatten(), largest.new_ones(1)]).max()
    return float(difference.max() / scale) if difference.numel() else 0.0


def loss_gap(options: dict[str, Any], kind: str, rank: int, world: int, group: Any) -> float:
    """Of loss and gradients, against one process with all rows."""
    dtype, bank_dtype = BANKS[kind]
    max_batch = 6 if options.get("hardness") == 5.0 else None
    bank, whole = banks(rank, world, group, bank_dtype, max_batch=max_batch)
    total = sum(ROWS[:world])
    query, positive = (unit(total, DIM, dtype=dtype) for _ in range(2))
    ids = torch.randint(0, 12, (total,))
    reduction = options.get("reduction", "mean")

    def run(rows: slice, negatives: Any) -> list[Tensor]:
        q, p = (t[rows].clone().requires_grad_() for t in (query, positive))
        learned = {
            name: torch.tensor(value, dtype=torch.float64 if kind == "fp64" else torch.float32)
            for name, value in (("temperature", 0.1), ("hardness", 2.0))
            if options.get(name) == "tensor"
        }
        inputs = [q, p, *(t.requires_grad_() for t in learned.values())]
        if "limit" in options:
            learned["limit"] = options["limit"][rows]
        loss = weighted_info_nce(q, p, negatives, query_ids=ids[rows], **{**options, **learned})
        return [loss.detach(), *torch.autograd.grad(loss.sum(), inputs)]

    loss, *grads = run(of_rank(rank), bank)
    truth, *wanted = run(slice(0, total), whole)
    scale = 1 if reduction == "none" else world
    if reduction == "none":
        gaps = [gap(loss, truth[of_rank(rank)])]
    else:
        dist.all_reduce(loss, group=group)
        gaps = [gap(loss / world, truth)]
    gaps += [
        gap(own / scale, all_of[of_rank(rank)])
        for own, all_of in zip(grads[:2], wanted[:2], strict=True)
    ]
    for own, all_of in zip(grads[2:], wanted[2:], strict=True):  # DDP averages them
        dist.all_reduce(own, group=group)
        gaps.append(gap(own / world, all_of))
    return max(gaps)


def queries(rank: int, world: int, group: Any) -> dict[str, float]:
    """Log-sum-exps, hardest rows, statistics, in-batch negatives and both directions."""
    bank, whole = banks(rank, world, group, torch.float32)
    every, keys = (unit(sum(ROWS[:world]), DIM, dtype=torch.float32) for _ in range(2))
    ids = torch.randint(0, 12, (len(every),))
    mine = of_rank(rank)
    query, found = every[mine].clone().requires_grad_(), {}

    def compare(name: str, call: Any) -> None:
        outs, truths = call(bank), call(whole)
        gaps = [gap(a.detach(), b.detach()) for a, b in zip(outs, truths, strict=True)]
        if outs[0].requires_grad:
            a, b = (torch.autograd.grad(o[0].sum(), query)[0] for o in (outs, truths))
            gaps.append(gap(a, b))
        found[name] = max(gaps)

    for backend in ("torch", "auto", "reference"):
        compare(
            f"lse-{backend}",
            lambda b, backend=backend: [
                bank_lse(query, b, [1.0, 9.0], query_ids=ids[mine], backend=backend)
            ],
        )
        for k in (1, 3, 60):
            compare(
                f"hardest-{backend}-{k}",
                lambda b, k=k, backend=backend: hardest_negatives(
                    query, b, k, query_ids=ids[mine], backend=backend
                ),
            )

    def stats(b: Any) -> list[Tensor]:
        loss, known = weighted_info_nce(
            query, keys[mine], b, query_ids=ids[mine], hardness=4.0, in_batch_negatives=True,
            reduction="none", return_stats=True,
        )  # fmt: skip
        return [loss, *known]

    compare("stats", stats)
    compare(
        "symmetric",
        lambda b: [
            symmetric_info_nce(
                query, keys[mine], query.detach(), keys[mine], b, b, ids=ids[mine],
                in_batch_negatives=True, reduction="none",
            )
        ],
    )  # fmt: skip
    return found


def fragments(rank: int) -> float:
    """Means are searched on all ranks; the sets that were found come from their holders."""
    sets, ids = unit(4, 6, 3, DIM, dtype=torch.float32), torch.randint(0, 5, (4, 6))
    lengths = torch.randint(1, 4, (4, 6))
    means = ShardedMemoryBank(21, DIM)
    here = FragmentBank(means.rows.shape[0], 3, DIM)
    whole = []
    for turn in range(4):
        bank = here if turn == rank else FragmentBank(21 // 4 + (turn < 1), 3, DIM)
        bank.enqueue(sets[turn], lengths[turn], ids[turn])
        whole.append(bank)
    means.enqueue(sets[rank].mean(dim=1), ids[rank])
    query = unit(3 - rank % 2, DIM, dtype=torch.float32)
    _, indices = hardest_negatives(query, means, 4, query_ids=torch.arange(len(query)))
    found = means.fetch(here.rows, indices), means.fetch(here.lengths, indices)
    shared = ShardedFragmentBank(21, 3, DIM)
    shared.enqueue(sets[rank], lengths[rank], ids[rank])
    again = shared.fetch(indices)
    assert all(torch.equal(one, two) for one, two in zip(again, found, strict=True))
    assert torch.equal(shared.ids, here.ids)
    padded = torch.zeros(1, 3, DIM)
    rows = torch.cat([bank.rows for bank in whole] + [padded])
    counts = torch.cat([bank.lengths for bank in whole] + [torch.zeros(1, dtype=torch.int64)])
    return max(gap(found[0], rows[indices]), gap(found[1], counts[indices]))


def beyond(rank: int) -> str:
    """What each rank is told where one of them asks for a slot that no rank has."""
    bank = ShardedMemoryBank(21, DIM)
    try:
        bank.fetch(bank.rows, torch.tensor([[3, 21 if rank == 2 else 20, -1]]))
    except ValueError as error:
        return str(error)
    return ""


def recalls(rank: int) -> bool:
    """The ranks share the blocks and find what one of them finds alone."""
    images, texts = unit(40, DIM), unit(90, DIM)
    ids = {"image_ids": torch.arange(40), "text_ids": torch.randint(0, 40, (90,))}
    with mock.patch("sede_kernels.functional.ranks.BLOCK", (7, 11)):
        together = recall_at_k(images, texts, **ids, group=dist.group.WORLD)
    return together == recall_at_k(images, texts, **ids)


def alone_in_eval(rank: int) -> float:
    """Without a gradient, or in eval mode, one rank works alone, on its own rows."""
    bank, _ = banks(rank, 4, None, torch.float32)
    if rank:
        return 0.0
    query = unit(4, DIM, dtype=torch.float32)
    own = BankView(bank.rows, None, bank.ids)
    with torch.no_grad():
        unrecorded = weighted_info_nce(query, query, bank)
    bank.eval()
    loss, known = (weighted_info_nce(query, query, b) for b in (bank, own))
    assert torch.equal(unrecorded, known)
    values, indices = hardest_negatives(query, bank, 2)
    expected = hardest_negatives(query, own, 2)
    return max(gap(loss, known), gap(values, expected[0]), gap(indices, expected[1]))


def compiled(rank: int, group: Any) -> float:
    """One graph, on ragged batches; equal to the eager step."""
    torch.manual_seed(1)
    criterion = SEDELoss(
        SIZE, DIM, sharded=True, group=group, start_step=1, hardness=3.0, temperature=0.1
    )

    def step(image: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        loss: Tensor = criterion(image, text, ids=ids)
        criterion.enqueue(image.detach(), text.detach(), ids=ids)
        return loss

    fast = torch.compile(step, backend="aot_eager", fullgraph=True)
    gaps = []
    for turn in range(3):
        image, text = (unit(2 + rank, DIM, dtype=torch.float32) for _ in range(2))
        ids = torch.arange(2 + rank) + 10 * turn
        buffers = [(n, b) for n, b in criterion.named_buffers() if not n.endswith("home")]
        state = {name: value.clone() for name, value in buffers}
        a, b = (t.clone().requires_grad_() for t in (image, image))
        eager = torch.autograd.grad(step(a, text, ids), a)[0]
        for name, value in buffers:
            value.copy_(state[name])
        graph = torch.autograd.grad(fast(b, text, ids), b)[0]
        gaps.append(gap(graph, eager))
    return max(gaps)


def work(rank: int, folder: Path) -> dict[str, Any]:
    """Every case on 2, 3 and 4 ranks."""
    found: dict[str, Any] = {}
    for world in (2, 3, 4):
        group = dist.new_group(list(range(world)))
        if rank < world:
            torch.manual_seed(5)
            for name, options in CASES.items():
                kinds = BANKS if name == "weights" else ("fp64", "fp32")
                for kind in kinds:
                    key = f"{world}-{name}-{kind}"
                    found[key] = loss_gap(options, kind, rank, world, group)
            for name, value in queries(rank, world, group).items():
                found[f"{world}-{name}"] = value
            if world == 2:
                found["compiled"] = compiled(rank, group)
    alone = {"fragments": fragments, "beyond": beyond, "recall": recalls, "eval": alone_in_eval}
    for name, call in alone.items():
        torch.manual_seed(5)
        found[name] = call(rank)
    return found
