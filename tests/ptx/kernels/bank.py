"""Problems of the passes over the bank: in one pass, in chunks, two banks at once, the batch."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sede_kernels import MemoryBank, functional
from sede_kernels.backends.triton import launch
from sede_kernels.backends.triton.bank_lse import _worth_one_launch, one_pass
from sede_kernels.bank import BankView
from tests.ptx.kernels.problem import Check, Problem, compared, floor_of, ids, same, tiles, unit

Config = launch.Config
Entries = dict[str, Config]
#: Columns of a row by the width that a launch table pads them to: multiples of 16, as descriptors
#: and wide copies want them, and never the width itself.
_DIM = {"128": 112, "256": 208, "512": 400}
#: Of the passes that walk D: four steps of 64 and a part of one.
_LONG = 272
_HALF, _FULL = torch.bfloat16, torch.float32
_DTYPE = {"half": _HALF, "tf32": _FULL, "ieee": _FULL}


def stored(rows: int, dim: int, dtype: torch.dtype) -> BankView:
    """A bank with empty slots, which hold NaN; of int8, one that MemoryBank has filled."""
    if dtype == torch.int8:
        bank = MemoryBank(rows, dim, dtype=dtype)
        bank.enqueue(unit(rows - 3, dim), ids(rows - 3))
        return bank.view()
    view = BankView(unit(rows, dim, dtype=dtype), None, ids(rows, low=-1))
    view.rows[view.ids == -1] = torch.nan
    return view


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


def _of_variant(key: str, slots: int, banks: int) -> tuple[torch.dtype, list[BankView]]:
    """What a row of the table serves: dtype of the queries, and banks."""
    width, variant = key.split("/")
    dtype, dim = torch.float16 if variant == "full" else _HALF, _DIM[width]
    kept = torch.int8 if key in ("128/safe", "256/safe") else dtype
    views = [stored(slots, dim, kept) for _ in range(banks)]
    return dtype, [
        _strided(view) for view in views
    ] if variant == "safe" and width == "512" else views


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


def _one_bank(key: str, entries: Entries) -> Iterator[Check]:
    config, options = entries["bank_lse"], _options(key)
    rows = config.rows + 3
    dtype, (bank,) = _of_variant(key, tiles(config), 1)
    options["query_ids"], dim = ids(rows), bank.rows.shape[1]
    leaves = {"query": unit(rows, dim, dtype=dtype), "key": unit(rows, dim, dtype=dtype)}
    if "margin" in options:
        leaves["temperature"] = torch.tensor(0.1)

    def call(own: list[Tensor], backend: str) -> Tensor:
        temperature = own[2] if "margin" in options else 0.1
        return functional.weighted_info_nce(
            own[0], own[1], bank, temperature=temperature, backend=backend, **options
        )

    architecture, _ = launch.device_class(bank.rows.device)
    scaled = bank.row_scale is not None
    whole = one_pass(leaves["query"], dtype, 1, architecture, scaled=scaled)
    yield same("one pass", torch.tensor(whole), torch.tensor(True))
    yield from _checked(call, leaves, floor_of("half", dtype))


def _two_banks(key: str, entries: Entries) -> Iterator[Check]:
    config, options = entries["bank_lse_pair"], _options(key)
    architecture, _ = launch.device_class(torch.device("cpu"))
    single = launch.candidates("bank_lse", key, architecture)[0]
    # A second tile of queries only where one launch still reads the banks no more than two would.
    rows = config.rows - 3 if config.rows < single.rows else config.rows + 3
    dtype, banks = _of_variant(key, tiles(config), 2)
    options["ids"], dim = ids(rows), banks[0].rows.shape[1]
    names = ("image", "text", "image_key", "text_key")

    def call(own: list[Tensor], backend: str) -> Tensor:
        return functional.symmetric_info_nce(
            *own, *banks, temperature=0.1, backend=backend, **options
        )

    leaves = {name: unit(rows, dim, dtype=dtype) for name in names}
    joint = _worth_one_launch(key, rows, leaves["image"].device)
    yield same("one launch", torch.tensor(joint), torch.tensor(True))
    yield from _checked(call, leaves, floor_of("half", dtype))


def _no_rows(kind: str, entries: Entries, dtype: torch.dtype | None = None) -> Iterator[Check]:
    """Three log-sum-exps, no gradient; of one bank or, by name of the table, of two."""
    (table, config), dtype = next(iter(entries.items())), dtype or _DTYPE[kind]
    rows, banks = config.rows + 3, [stored(tiles(config), _LONG, dtype) for _ in range(2)]
    queries, query_ids = [unit(rows, _LONG, dtype=dtype) for _ in range(4)], ids(rows)

    def call(to: torch.dtype, backend: str) -> Tensor:
        own = [query.to(to) for query in queries]
        with torch.no_grad():
            if table == "bank_lse":
                return functional.bank_lse(
                    own[0], banks[0], [10.0, 4.0, 0.0], query_ids=query_ids, backend=backend
                )
            return functional.symmetric_info_nce(
                *own, *banks, temperature=0.1, hardness=2.0, ids=query_ids, reduction="none",
                backend=backend,
            )  # fmt: skip

    outcome = (call(dtype, "triton"), call(torch.float64, "reference"), call(dtype, "torch"))
    yield from compared(("value",), *((value,) for value in outcome), floor_of(kind, dtype))


def _chunks(
    dtype: torch.dtype, kept: torch.dtype, kind: str, both: bool, entries: Entries
) -> Iterator[Check]:
    """Variant B; ``both``: a second accumulator, for weights that get a gradient."""
    first, second = entries["chunk_weights"], entries["chunk_rows"]
    rows = max(first.rows, second.rows) + 3
    slots = tiles(replace(first, stages=max(first.stages, second.stages)))
    bank, query_ids = stored(slots, _LONG, kept), ids(rows)
    leaves = {"query": unit(rows, _LONG, dtype=dtype), "key": unit(rows, _LONG, dtype=dtype)}

    def call(own: list[Tensor], backend: str) -> Tensor:
        return functional.weighted_info_nce(
            *own, bank, temperature=0.1, hardness=2.0, detach_weights=not both,
            margin=_margin(kind), query_ids=query_ids, reduction="none", backend=backend,
        )  # fmt: skip

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
    bank, query = stored(tiles(config), _LONG, kept), unit(config.rows + 3, _LONG, dtype=dtype)
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

    def bound(function: Any, *fixed: Any) -> Callable[[Entries], Iterator[Check]]:
        return lambda entries: function(*fixed, entries)

    for table, whole in (("bank_lse", _one_bank), ("bank_lse_pair", _two_banks)):
        for key in launch.table(table):
            kind = key.partition("/")[2]
            call = bound(_no_rows, kind) if key.startswith("step/") else bound(whole, key)
            yield Problem(f"{table} {key}", ((table, key),), call)
    lean = (("bank_lse", "128/lean"),)
    yield Problem("bank_lse parts", lean, bound(_one_bank, "128/lean"), cores=8)
    rows = {
        "half": (_HALF, _HALF, "half", True),
        "int8": (_HALF, torch.int8, "half", True),
        "tf32": (_FULL, _FULL, "tf32", False),
        "ieee": (_FULL, _FULL, "ieee", False),
        "ieee/int8": (_FULL, torch.int8, "ieee", False),
    }
    for key, fixed in rows.items():
        both = (("chunk_weights", key.partition("/")[0]), ("chunk_rows", key))
        yield Problem(f"chunks {key}", both, bound(_chunks, *fixed))
    half = (("chunk_weights", "half"), ("chunk_rows", "half"))
    yield Problem("chunks parts", half, bound(_chunks, *rows["half"]), cores=64)
    for kind in launch.table("batch_lse_backward"):
        table = (("batch_lse_backward", kind),)
        yield Problem(f"batch_lse {kind}", table, bound(_batch, kind, 48))
        yield Problem(f"batch_lse {kind} wide", table, bound(_batch, kind, _LONG))
    for kind in launch.table("hardest"):
        table = (("hardest", kind),)
        yield Problem(f"hardest {kind}", table, bound(_hardest, kind, _DTYPE[kind]))
    table = (("hardest", "half"),)
    yield Problem("hardest int8", table, bound(_hardest, "half", torch.int8), cores=8)
