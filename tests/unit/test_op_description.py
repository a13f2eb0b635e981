"""ops/_op.py: schema, fake, run and gradients of an op from one description."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sede_kernels.ops import _op
from sede_kernels.ops._op import Saved, op


class Rows(NamedTuple):
    data: Tensor
    ids: Tensor | None = None


class Bend(NamedTuple):
    factor: float
    powers: tuple[int, ...] = (1,)


class Found(NamedTuple):
    out: Tensor
    count: Tensor


@op(decides=("query", "rows_data"), differentiable=("out",))
def described(
    query: Tensor, rows: Rows, bend: Bend | None, label: str, twice: bool, backend: str
) -> Found:
    """out = query * sum of the rows, scaled where ``bend`` is given."""
    return Found(torch.empty_like(query), query.new_empty((), dtype=torch.int64))


@described.gradients(saves=("rows_data",))
def _(saved: Saved, grad: Found) -> dict[str, Tensor | None]:
    assert saved.needs == {"query"}
    factor = saved["bend_factor"] if saved["bend_given"] else 1.0
    return {"query": grad.out * saved["rows_data"].sum() * factor}


@op(decides=("store",), mutates=("store",))
def filled(store: Tensor, value: int, backend: str) -> None:
    """Writes ``value`` everywhere."""


seen: list[tuple[object, ...]] = []


def fill(store: Tensor, value: int) -> None:
    store.fill_(value)


def run(query: Tensor, rows: Rows, bend: Bend | None, label: str, twice: bool) -> Found:
    seen.append((rows, bend, label, twice))
    factor = bend.factor if bend else 1.0
    return Found(query * rows.data.sum() * factor, torch.tensor(len(rows.data)))


@pytest.fixture(autouse=True)
def _backend(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"described": run, "filled": fill}
    monkeypatch.setattr(_op, "resolve", lambda name, backend, *tensors: found[name])
    seen.clear()


def test_the_schema_is_flat_and_names_its_groups() -> None:
    assert str(torch.ops.sede.described.default._schema) == (
        "sede::described(Tensor query, Tensor rows_data, Tensor? rows_ids, bool bend_given, "
        "float bend_factor, SymInt[] bend_powers, str label, bool twice, str backend) "
        "-> (Tensor, Tensor)"
    )
    assert str(torch.ops.sede.filled.default._schema) == (
        "sede::filled(Tensor(a0!) store, SymInt value, str backend) -> ()"
    )


@pytest.mark.parametrize("bend", [None, Bend(2.0, (3, 4))], ids=["absent", "given"])
def test_a_backend_gets_the_values_that_the_caller_passed(bend: Bend | None) -> None:
    query, rows = torch.ones(3), Rows(torch.tensor([1.0, 2.0]), torch.tensor([5, 6]))
    found = described(query, rows, bend, "a", twice=True, backend="x")
    assert isinstance(found, Found)
    assert found.out.tolist() == [6.0 if bend else 3.0] * 3
    (got, bent, label, twice) = seen[0]
    assert isinstance(got, Rows) and torch.equal(got.ids, rows.ids)
    assert (bent, label, twice) == (bend, "a", True)


def test_gradients_come_by_name_and_only_what_is_saved_is_kept() -> None:
    query = torch.ones(3, requires_grad=True)
    rows = Rows(torch.tensor([1.0, 2.0]), torch.tensor([5, 6]))
    found = described(query, rows, Bend(2.0), "a", False, "x")
    assert not found.count.requires_grad
    rows.ids.add_(1)  # not saved, so this is no error
    (grad,) = torch.autograd.grad(found.out.sum(), query)
    assert grad.tolist() == [6.0] * 3
    found = described(query, rows, None, "a", False, "x")
    rows.data.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.out.sum().backward()


def test_it_compiles_and_passes_opcheck() -> None:
    query, rows = torch.ones(3, requires_grad=True), Rows(torch.tensor([1.0, 2.0]))
    step = torch.compile(
        lambda q: described(q, rows, Bend(3.0), "a", False, "x").out.sum(),
        fullgraph=True,
        backend="aot_eager",
    )
    (grad,) = torch.autograd.grad(step(query), query)
    assert grad.tolist() == [9.0] * 3
    flat = (query, rows.data, None, True, 2.0, (1,), "a", False, "x")
    torch.library.opcheck(torch.ops.sede.described.default, flat)


def test_an_op_that_mutates_returns_nothing() -> None:
    store = torch.zeros(2)
    assert filled(store, 7, "x") is None
    assert store.tolist() == [7.0, 7.0]


class _Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _vmapped() -> Iterator[None]:
    level = torch._C._functorch._vmap_increment_nesting(2, "error")
    assert level == 1
    yield
    torch._C._functorch._vmap_decrement_nesting()


LOOKERS = {
    "nothing": (contextlib.nullcontext, 0),
    "no grad": (torch.no_grad, 0),
    "mode": (_Watching, 1),
    "profiler": (torch.autograd.profiler.profile, 1),
    "forward mode": (torch.autograd.forward_ad.dual_level, 1),
    "vmap": (_vmapped, 1),
}


@pytest.mark.parametrize("around,calls", LOOKERS.values(), ids=LOOKERS)
def test_the_dispatcher_is_left_out_where_nothing_looks_on(around, calls, monkeypatch) -> None:
    dispatched = []
    honest = described._op
    monkeypatch.setattr(described, "_op", lambda *flat: dispatched.append(0) or honest(*flat))
    query, rows = torch.ones(3, requires_grad=True), Rows(torch.tensor([1.0, 2.0]))
    with around():
        found = described(query, rows, Bend(2.0), "a", False, "x")
    assert len(dispatched) == calls
    assert found.out.tolist() == [6.0] * 3
    if found.out.requires_grad:
        (grad,) = torch.autograd.grad(found.out.sum(), query)
        assert grad.tolist() == [6.0] * 3


def test_a_subclass_of_tensors_goes_through_the_dispatcher(monkeypatch) -> None:
    class Tagged(Tensor):
        pass

    dispatched = []
    honest = described._op
    monkeypatch.setattr(described, "_op", lambda *flat: dispatched.append(0) or honest(*flat))
    rows = Rows(torch.ones(2))
    described(torch.nn.Parameter(torch.ones(3)), rows, None, "a", False, "x")
    assert not dispatched
    described(torch.ones(3).as_subclass(Tagged), rows, None, "a", False, "x")
    assert dispatched


def test_a_write_is_seen_by_autograd_with_and_without_the_dispatcher() -> None:
    for around in (contextlib.nullcontext, _Watching):
        store = torch.ones(2)
        out = torch.ones(2, requires_grad=True) * store
        with around():
            filled(store, 7, "x")
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


class Turn(NamedTuple):
    angle: float
    bend: Bend | None


@op(decides=("query",))
def nested(query: Tensor, turn: Turn, backend: str) -> Tensor:
    """Groups may hold groups."""
    return query.new_empty(())


@pytest.mark.parametrize("bend", [None, Bend(2.0, (3, 4))], ids=["absent", "given"])
@pytest.mark.parametrize("around", [contextlib.nullcontext, _Watching], ids=["direct", "op"])
def test_groups_within_groups(bend, around, monkeypatch) -> None:
    monkeypatch.setattr(
        _op, "resolve", lambda *_: lambda query, turn: seen.append(turn) or query.clone()
    )
    assert str(torch.ops.sede.nested.default._schema) == (
        "sede::nested(Tensor query, float turn_angle, bool turn_bend_given, "
        "float turn_bend_factor, SymInt[] turn_bend_powers, str backend) -> Tensor"
    )
    with around():
        nested(torch.ones(()), Turn(0.5, bend), "x")
    assert seen == [Turn(0.5, bend)]
