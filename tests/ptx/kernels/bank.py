"""Problems of the passes over the bank: in one pass, in chunks, two banks at once, the batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sede_kernels import MemoryBank, functional
from sede_kernels.backends.triton import _chunks as _chunks_module
from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.bank_lse import _worth_one_launch, one_pass
from sede_kernels.backends.triton.batch_lse import WIDEST_SLICE
from sede_kernels.bank import BankView
from tests.ptx.kernels.problem import Check, Problem, compared, floor_of, ids, same, tiles, unit

Config = launch.Config
Entries = dict[str, Config]
#: Columns of a row by the width that a launch table pads them to: multiples of 16, as descriptors
#: and wide copies want them.
_DIM = {"128": 112, "256": 208, "512": 400}
#: Of the passes that walk D: four steps of 64 and a part of one.
_LONG = 272
_HALF, _FULL = torch.bfloat16, torch.float32
_DTYPE = {"half": _HALF, "tf32": _FULL, "ieee": _FULL}


def stored(
    rows: int,
    dim: int,
    dtype: torch.dtype,
    empty: Tensor | None = None,
    shortest: float = 0.2,
) -> BankView:
    """A bank whose rows grow to unit length, so that the largest similarity does, tile by tile.

    The ``empty`` slots hold NaN and long rows in turn. One of int8 is as MemoryBank fills it.
    """
    if dtype == torch.int8:
        bank = MemoryBank(rows, dim, dtype=dtype)
        bank.enqueue(unit(rows - 3, dim), ids(rows - 3))
        return bank.view()
    grown = unit(rows, dim) * torch.linspace(shortest, 1.0, rows)[:, None]
    view = BankView(grown.to(dtype), None, ids(rows))
    if empty is not None:
        view.ids[empty] = -1
        view.rows[empty] *= 3.0
        view.rows[empty[::2]] = torch.nan
    return view


def _scattered(first: int, stop: int) -> Tensor:
    """One slot in six of [first, stop), and the last."""
    some = first + torch.randperm(stop - first)[: (stop - first) // 6]
    return torch.unique(torch.cat([some, torch.tensor([stop - 1])]))


def _strided(view: BankView) -> BankView:
    """The same bank where rows start at odd addresses: no descriptor can name it."""
    rows, dim = view.rows.shape
    apart = view.rows.new_zeros(rows, dim + 1)[:, 1:]
    return view._replace(rows=apart.copy_(view.rows))


def _checked(
    call: Callable[[list[Tensor], str], Tensor],
    leaves: dict[str, Tensor],
    floor: float,
) -> Iterator[Check]:
    """Loss and gradients of ``call`` on Triton, against fp64, with eager as the yardstick."""
    outcome = []
    for backend, dtype in (("triton", None), ("reference", torch.float64), ("torch", None)):
        own = [leaf.to(dtype or leaf.dtype, copy=True).requires_grad_() for leaf in leaves.values()]
        loss = call(own, backend)
        outcome.append((loss.detach(), *torch.autograd.grad(loss.sum(), own)))
    names = ("loss", *(f"d_{name}" for name in leaves))
    yield from compared(names, outcome[0], outcome[1], outcome[2], floor)


def _of_variant(
    key: str, slots: int, banks: int, dim: int, empty: Tensor | None
) -> tuple[torch.dtype, list[BankView]]:
    """What a row of the table serves: dtype of the queries, and banks."""
    dtype = torch.float16 if key.endswith("/full") else _HALF
    kept = torch.int8 if key in ("128/safe", "256/safe") else dtype
    shortest = 1.0 if key.endswith("/static") else 0.2  # which promises unit length
    views = [stored(slots, dim, kept, empty, shortest) for _ in range(banks)]
    if key == "512/safe":
        views = [_strided(view) for view in views]
    return dtype, views


def _part(key: str, table: str, config: Config, least: int) -> int:
    """Slots of a part of the bank: whole tiles of both passes, at least so many."""
    architecture, _ = launch.device_class(torch.device("cpu"))
    safe = launch.candidates(table, f"{key.split('/', maxsplit=1)[0]}/safe", architecture)[0]
    unit_of_part = max(config.cols, safe.cols)
    return -(-least // unit_of_part) * unit_of_part


def _filling(config: Config) -> int:
    """Slots that fill every stage of a pipeline and go on."""
    return config.cols * (config.stages + 3)


def _options(key: str) -> dict[str, Any]:
    """``full`` has a limit, which also makes a kernel keep statistics; ``static`` a promise."""
    variant = key.split("/")[1]
    options: dict[str, Any] = {"hardness": 2.0, "reduction": "none"}
    if variant == "full":
        options["margin"] = 0.2
    if variant == "static":
        options["unit_length"] = True
    return options


def _margin(kind: str) -> float | None:
    """None for tf32, whose error decides whether a negative at the limit counts."""
    return None if kind == "tf32" else 0.2


def _layout(key: str, config: Config, plan: str) -> tuple[int, int, Tensor]:
    """(queries, slots, empty slots) of a plan.

    ``two``: parts, one of them without an empty slot. ``long``: one part of more slots than a scan
    for empty ones takes at once, one empty at its end. ``parts``: four long ones, the empty slots
    alone in theirs. ``many``: more parts than 32 lanes of 7 numbers hold.
    """
    if plan == "long":
        return config.rows + 3, 2100, torch.tensor([2091])
    if plan == "many":
        slots = 250 * _part(key, "bank_lse", config, 1) + 1
        return 3, slots, torch.arange(7, slots, slots // 3)
    if plan == "parts":
        part = _part(key, "bank_lse", config, 1100)
        alone = torch.tensor([part + 5, 2 * part + 514, 4 * part - 10])
        return config.rows + 3, 3 * part + tiles(config) + 1024, alone[alone < 4 * part - 20]
    part = _part(key, "bank_lse", config, _filling(config))
    slots = part + tiles(config)
    return config.rows + 3, slots, _scattered(part, slots)


def _one_bank(
    key: str, entries: Entries, *, plan: str = "two", wide: bool = False
) -> Iterator[Check]:
    """A pass with a gradient; ``wide``: no column is padding."""
    config, options = entries["bank_lse"], _options(key)
    rows, slots, empty = _layout(key, config, plan)
    width = key.split("/", maxsplit=1)[0]
    dim = int(width) if wide else _DIM[width]
    dtype, (bank,) = _of_variant(key, slots, 1, dim, empty)
    options["query_ids"] = ids(rows)
    leaves = {"query": unit(rows, dim, dtype=dtype), "key": unit(rows, dim, dtype=dtype)}
    numbers = {"temperature": 0.1, "hardness": options.pop("hardness")}
    if "margin" in options:  # statistics give these their gradients
        leaves |= {name: torch.tensor(number) for name, number in numbers.items()}

    def call(own: list[Tensor], backend: str) -> Tensor:
        learned = dict(zip(numbers, own[2:], strict=True)) if own[2:] else numbers
        return functional.weighted_info_nce(
            own[0], own[1], bank, backend=backend, **learned, **options
        )

    architecture, _ = launch.device_class(bank.rows.device)
    scaled = bank.row_scale is not None
    whole = one_pass(leaves["query"], dtype, 1, architecture, scaled=scaled)
    yield same("one pass", torch.tensor(whole), torch.tensor(True))
    yield from _checked(call, leaves, floor_of("half", dtype))


def _two_banks(key: str, entries: Entries) -> Iterator[Check]:
    """In one part without an empty slot, and of the whole width, where the key is lean."""
    config, options = entries["bank_lse_pair"], _options(key)
    lean, width = key.endswith("/lean"), key.split("/", maxsplit=1)[0]
    architecture, _ = launch.device_class(torch.device("cpu"))
    single = launch.candidates("bank_lse", key, architecture)[0]
    # A second tile of queries only where one launch still reads the banks no more than two would.
    rows = config.rows - 3 if config.rows < single.rows else config.rows + 3
    part = 0 if lean else _part(key, "bank_lse_pair", config, _filling(config))
    slots = part + tiles(config)
    empty, dim = None if lean else _scattered(part, slots), int(width) if lean else _DIM[width]
    dtype, banks = _of_variant(key, slots, 2, dim, empty)
    options["ids"] = ids(rows)
    names = ("image", "text", "image_key", "text_key")

    def call(own: list[Tensor], backend: str) -> Tensor:
        return functional.symmetric_info_nce(
            *own, *banks, temperature=0.1, backend=backend, **options
        )

    leaves = {name: unit(rows, dim, dtype=dtype) for name in names}
    joint = _worth_one_launch(key, rows, architecture)
    yield same("one launch", torch.tensor(joint), torch.tensor(True))
    yield from _checked(call, leaves, floor_of("half", dtype))


def _no_rows(kind: str, entries: Entries) -> Iterator[Check]:
    """Log-sum-exps without a gradient, of one bank or, by name of the table, of two."""
    (table, config), dtype = next(iter(entries.items())), _DTYPE[kind]
    rows, slots = config.rows + 3, tiles(config)
    banks = [stored(slots, _LONG, dtype, _scattered(0, slots)) for _ in range(2)]
    queries, query_ids = [unit(rows, _LONG, dtype=dtype) for _ in range(4)], ids(rows)
    options: dict[str, Any] = {"temperature": 0.1, "hardness": 2.0, "reduction": "none"}

    def call(to: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        own = [query.to(to) for query in queries]
        with torch.no_grad():
            if table == "bank_lse_pair":
                return (
                    functional.symmetric_info_nce(
                        *own, *banks, ids=query_ids, backend=backend, **options
                    ),
                )
            three = functional.bank_lse(
                own[0], banks[0], [10.0, 4.0, 0.0], query_ids=query_ids, backend=backend
            )
            loss, stats = functional.weighted_info_nce(
                own[0], own[1], banks[0], query_ids=query_ids, backend=backend,
                return_stats=True, **options,
            )  # fmt: skip
            found = banks[0].rows[stats.hardest_index].double()
            index = (queries[0].double() * found).sum(1)
            return three, loss, stats.hardest, index, stats.negatives.double()

    several = ("lse", "loss", "hardest", "index", "negatives")
    names = several if table == "bank_lse" else ("loss",)
    outcome = (call(dtype, "triton"), call(torch.float64, "reference"), call(dtype, "torch"))
    yield from compared(names, *outcome, floor_of(kind, dtype))


def _chunks(
    dtype: torch.dtype,
    kept: torch.dtype,
    kind: str,
    both: bool,
    entries: Entries,
    *,
    short: bool = False,
) -> Iterator[Check]:
    """Variant B in three chunks, the last with empty slots; ``short``: one, and less than a tile.

    ``both``: a second accumulator, for weights that get a gradient.
    """
    first, second = entries["chunk_weights"], entries["chunk_rows"]
    first = replace(first, stages=max(first.stages, second.stages))
    rows = max(first.rows, second.rows) + 3
    chunk = _filling(first)
    slots = first.cols // 2 + 1 if short else 2 * chunk + tiles(first)
    bank = stored(slots, _LONG, kept, _scattered(0 if short else 2 * chunk, slots))
    query_ids = ids(rows)
    leaves = {"query": unit(rows, _LONG, dtype=dtype), "key": unit(rows, _LONG, dtype=dtype)}

    def call(own: list[Tensor], backend: str) -> Tensor:
        return functional.weighted_info_nce(
            *own, bank, temperature=0.1, hardness=2.0, detach_weights=not both,
            margin=_margin(kind), query_ids=query_ids, reduction="none", backend=backend,
        )  # fmt: skip

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_chunks_module, "CHUNK_BYTES", chunk * rows * (1 + both) * dtype.itemsize)
        yield from _checked(call, leaves, floor_of(kind, dtype))


def _batch(kind: str, dim: int, entries: Entries) -> Iterator[Check]:
    """In-batch negatives alone, forward and backward."""
    rows, dtype = tiles(entries["batch_lse_backward"]), _DTYPE[kind]
    leaves = {"query": unit(rows, dim, dtype=dtype), "key": unit(rows, dim, dtype=dtype)}
    query_ids = ids(rows)

    def call(own: list[Tensor], backend: str) -> Tensor:
        return functional.weighted_info_nce(
            *own, None, temperature=0.1, hardness=2.0, margin=_margin(kind), query_ids=query_ids,
            in_batch_negatives=True, reduction="none", backend=backend,
        )  # fmt: skip

    yield from _checked(call, leaves, floor_of(kind, dtype))


def _hardest(kind: str, kept: torch.dtype, entries: Entries) -> Iterator[Check]:
    """More of them than one pass finds."""
    config, dtype, k = entries["hardest"], _DTYPE[kind], 20
    slots = tiles(config)
    bank = stored(slots, _LONG, kept, _scattered(0, slots), shortest=0.8)
    query = unit(4 * config.rows + 3, _LONG, dtype=dtype)
    query_ids = ids(query.shape[0])

    def call(to: torch.dtype, backend: str) -> tuple[Tensor, Tensor]:
        return functional.hardest_negatives(
            query.to(to), bank, k, query_ids=query_ids, backend=backend
        )

    (got, index), (want, _), (plain, _) = (
        call(dtype, "triton"), call(torch.float64, "reference"), call(dtype, "torch"),
    )  # fmt: skip
    floor = floor_of(kind, dtype)
    yield from compared(("values",), (got,), (want,), (plain,), floor)
    rows = bank.rows.double() if bank.row_scale is None else (
        bank.rows.double() * bank.row_scale.double()[:, None]
    )  # fmt: skip
    chosen = torch.einsum("bd,bkd->bk", query.double(), rows[index])
    yield from compared(("rows",), (chosen,), (want,), (plain.double(),), floor)
    valid = (bank.ids[index] != -1) & (bank.ids[index] != query_ids[:, None])
    distinct = index.sort(1).values.diff(dim=1) != 0
    yield same("masked", valid.all() & distinct.all(), torch.tensor(True))


def problems() -> Iterator[Problem]:
    """One for every row of the tables, and the kernels that join parts."""

    for key in launch.table("bank_lse"):
        call = partial(_no_rows, key[5:]) if key.startswith("step/") else partial(_one_bank, key)
        yield Problem(f"bank_lse {key}", (("bank_lse", key),), call, cores=4)
    for key in launch.table("bank_lse_pair"):
        call = partial(_no_rows, key[5:]) if key.startswith("step/") else partial(_two_banks, key)
        cores = 1 if key.endswith("/lean") else 8
        every = not key.endswith("/lean")
        yield Problem(f"bank_lse_pair {key}", (("bank_lse_pair", key),), call, cores, every)
    for key in ("128/lean", "256/full"):
        for plan, cores, wide in (("long", 1, True), ("parts", 8, False), ("many", 256, False)):
            call = partial(_one_bank, key, plan=plan, wide=wide)
            yield Problem(f"bank_lse {key} {plan}", (("bank_lse", key),), call, cores, not wide)
    rows = {
        "half": (_HALF, _HALF, "half", True),
        "int8": (_HALF, torch.int8, "half", True),
        "tf32": (_FULL, _FULL, "tf32", False),
        "ieee": (_FULL, _FULL, "ieee", False),
        "ieee/int8": (_FULL, torch.int8, "ieee", False),
    }
    for key, fixed in rows.items():
        both = (("chunk_weights", key.partition("/")[0]), ("chunk_rows", key))
        yield Problem(f"chunks {key}", both, partial(_chunks, *fixed))
    half = (("chunk_weights", "half"), ("chunk_rows", "half"))
    yield Problem("chunks half parts", half, partial(_chunks, *rows["half"]), cores=64)
    for key in ("half", "tf32"):
        both = (("chunk_weights", key), ("chunk_rows", key))
        call = partial(_chunks, *rows[key], short=True)
        yield Problem(f"chunks {key} short", both, call, every_pass=False)
    for kind in launch.table("batch_lse_backward"):
        table = (("batch_lse_backward", kind),)
        # A gradient that one program holds, with columns of padding, and one that several do.
        narrow = WIDEST_SLICE[kind] - 16
        yield Problem(f"batch_lse {kind}", table, partial(_batch, kind, narrow))
        yield Problem(f"batch_lse {kind} wide", table, partial(_batch, kind, _LONG))
    for kind in launch.table("hardest"):
        table = (("hardest", kind),)
        yield Problem(f"hardest {kind}", table, partial(_hardest, kind, _DTYPE[kind]))
    table = (("hardest", "half"),)
    yield Problem("hardest int8", table, partial(_hardest, "half", torch.int8), cores=8)
