"""How native code looks at tensors: through DLPack's exchange or by attributes, with one answer."""

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sede_kernels import (
    MemoryBank,
    hardest_negatives,
    symmetric_info_nce,
    weighted_info_nce,
)
from sede_kernels.types import Side
from tests.conftest import CPU_BACKENDS, unit

pytestmark = pytest.mark.skipif("cpu" not in CPU_BACKENDS, reason="the module is not built")

OFFERED = getattr(Tensor, "__dlpack_c_exchange_api__", None)
LOOKS = {"attributes": None, "exchange": OFFERED}


class Sub(Tensor):
    """Another class."""


@pytest.fixture(params=LOOKS)
def look(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways to look, the second one where this torch has it."""
    from sede_kernels.backends.cpu import _native

    if request.param == "exchange" and OFFERED is None:
        pytest.skip("this torch offers no exchange")
    _native.module().set_exchange(LOOKS[request.param])
    yield str(request.param)
    _native.module().set_exchange(OFFERED)


def fits(query: Tensor, *, bank: Tensor | None = None, ids: Tensor | None = None) -> bool:
    """Of a side with this query, positive and bank."""
    from sede_kernels.backends.cpu import _native

    rows = query if bank is None else bank
    found: bool = _native.module().info_nce_fits(Side(query, query, rows, ids=ids))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(5, 6), (1, 6), (5, 1), (0, 6)], ids=str)
def test_a_look_sees_addresses_strides_and_dtypes(look, shape, dtype) -> None:
    rows, dim = shape
    wide = unit(2 * rows + 3, 2 * dim).to(dtype)
    query, bank = wide[1 : 1 + rows, dim:], unit(dim, 7).to(dtype).T
    key = query.clone().requires_grad_()
    assert not query.is_contiguous() or rows < 2
    got = weighted_info_nce(query, key, bank, hardness=2.0, reduction="none", backend="cpu")
    want = weighted_info_nce(
        query.double(), key.double(), bank.double(), hardness=2.0, reduction="none",
        backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    assert fits(query, bank=bank)


def test_a_look_sees_the_scales_and_ids_of_an_int8_bank(look) -> None:
    bank = MemoryBank(9, 6, dtype=torch.int8)
    bank.enqueue(unit(7, 6).float(), torch.arange(7))
    query = unit(3, 6).float()
    values, indices = hardest_negatives(query, bank, query_ids=torch.arange(3), backend="cpu")
    want, places = hardest_negatives(query, bank, query_ids=torch.arange(3), backend="reference")
    torch.testing.assert_close(values, want)
    assert torch.equal(indices, places)


def test_what_is_no_plain_dense_tensor_does_not_fit(look) -> None:
    query = unit(3, 4).float()
    assert fits(query, ids=torch.arange(3))
    assert fits(torch.nn.Parameter(query))
    refused = {
        "other class": query.as_subclass(Sub),
        "sign that waits": torch.complex(query, query).conj().imag,
        "sparse": query.to_sparse(),
        "no memory": query.to("meta"),
        "integers": torch.ones(3, 4, dtype=torch.int32),
        "complex": torch.complex(query, query),
        "one dimension": query[0],
        "no tensor": query.tolist(),
    }
    for name, value in refused.items():
        assert not fits(value), name
    assert not fits(query, ids=torch.arange(3, dtype=torch.int32))
    assert not fits(query, ids=torch.arange(6)[::2])
    assert not fits(query, ids=torch.arange(4))


def test_a_fake_tensor_is_not_asked_for_its_memory(look) -> None:
    """Torch warns of whoever asks, or refuses."""
    with FakeTensorMode():
        query, bank = torch.zeros(3, 4), torch.zeros(5, 4)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert not fits(query, bank=bank)
            assert weighted_info_nce(query, query, bank).shape == ()
            assert hardest_negatives(query, bank, 2)[0].shape == (3, 2)
    finally:
        torch.set_warn_always(before)
    assert not [str(one.message) for one in said]


class Watching(TorchDispatchMode):
    """Lets all ops through; a call that is watched goes through the op."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names = [*getattr(self, "names", []), func.__name__]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hardness": 3.0, "reduction": "none", "false_negatives": "positive"},
        {"in_batch_negatives": True, "margin": 0.2, "temperature": 0.2},
        {"learnt": True, "in_batch_negatives": True, "positive_focus": 1.0},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
@pytest.mark.parametrize("learns", [True, False])
def test_a_loss_past_the_op_has_its_bits(learns, options) -> None:
    options = dict(options)
    learned = [unit(5, 6).float().requires_grad_(learns) for _ in range(2)]
    if options.pop("learnt", False):
        scalars = [torch.tensor([value], requires_grad=learns) for value in (0.3, 4.0)]
        options |= dict(zip(("temperature", "hardness"), scalars, strict=True))
        learned += scalars
    bank = MemoryBank(9, 6)
    bank.enqueue(unit(9, 6).float(), torch.arange(9) % 5)
    results, watch = [], Watching()
    for looks in (nullcontext(), watch):
        with looks:
            loss, stats = weighted_info_nce(
                *learned[:2], bank, query_ids=torch.arange(5), return_stats=True, **options
            )
        grads = torch.autograd.grad(loss.sum(), learned) if learns else ()
        results.append([loss, *stats, *grads])
    assert watch.names.count("info_nce.default") == 1
    for direct, through in zip(*results, strict=True):
        assert torch.equal(direct, through)


def test_an_exchange_of_another_kind_is_refused() -> None:
    from sede_kernels.backends.cpu import _native

    try:
        with pytest.raises(ValueError, match="PyCapsule"):
            _native.module().set_exchange("no capsule")
    finally:
        _native.module().set_exchange(OFFERED)


def test_a_loss_first_seen_in_inference_mode_can_be_learned_from_later() -> None:
    query, positive, rows = (unit(n, 19).float() for n in (13, 13, 29))
    with torch.inference_mode():  # of a shape that no other test has: what calls share is made here
        seen = weighted_info_nce(query, positive, rows)
    wanted = None
    for backend in ("reference", "cpu"):
        learned = positive.clone().requires_grad_()
        loss = weighted_info_nce(query, learned, rows, backend=backend)
        loss.backward()
        torch.testing.assert_close(seen, loss.detach())
        wanted = learned.grad if wanted is None else wanted
        torch.testing.assert_close(learned.grad, wanted)


SIDES = {
    "in-batch alone": (weighted_info_nce, None),
    "bank": (weighted_info_nce, "bank"),
    "both directions": (symmetric_info_nce, "bank"),
    "both directions, in-batch alone": (symmetric_info_nce, None),
}


@pytest.mark.parametrize("learning", ["queries", "positives", "all"])
@pytest.mark.parametrize("name", SIDES)
def test_losses_past_the_op_have_its_bits_whatever_learns(name, learning) -> None:
    function, bank = SIDES[name]
    count = 2 if function is weighted_info_nce else 4
    learns = {"queries": range(count // 2), "positives": range(count // 2, count)}
    tensors = [
        unit(7, 6).float().requires_grad_(at in learns.get(learning, range(count)))
        for at in range(count)
    ]
    banks = [None if bank is None else unit(9, 6).float() for _ in range(count // 2)]
    options = {"hardness": 3.0, "in_batch_negatives": bank is None, "backend": "cpu"}
    learned = [tensor for tensor in tensors if tensor.requires_grad]
    results, watch = [], Watching()
    for looks in (nullcontext(), watch):
        with looks:
            loss = function(*tensors, *banks, **options)
        grads = torch.autograd.grad(loss, learned, retain_graph=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x.clone()):
            again = torch.autograd.grad(function(*tensors, *banks, **options), learned[:1])
        results.append([loss.detach(), *grads, *again])
    assert watch.names.count("info_nce.default") == 1
    for direct, through in zip(*results, strict=True):
        assert torch.equal(direct, through)
        assert direct.abs().sum() > 0


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_each_loss_of_no_rows_is_a_tensor_of_its_own(reduction) -> None:
    query, bank = torch.empty(0, 6, requires_grad=True), unit(9, 6).float()
    first, second = (
        weighted_info_nce(query, query, bank, reduction=reduction, backend="cpu") for _ in range(2)
    )
    assert first is not second
    assert first.sum() == 0
    for loss in (first, second):
        assert loss.shape == (() if reduction == "mean" else (0,))
        (grad,) = torch.autograd.grad(loss.sum(), query)
        assert grad.shape == (0, 6)


def test_an_error_past_the_op_is_that_of_the_checks() -> None:
    query, bank = unit(5, 6).float(), unit(9, 6).float()
    wrong: dict[str, dict[str, Any]] = {
        "temperature": {"temperature": 0.0},
        "reduction": {"reduction": "total"},
        "normalize_weights": {"normalize_weights": 1},
        "margin": {"margin": [0.1]},
        "max_inverse_temperature": {"max_inverse_temperature": -1.0},
        "backend": {"backend": "gpu"},
    }
    weighted_info_nce(query, query, bank)  # which the settings of True were seen to fit
    for name, options in wrong.items():
        with pytest.raises((TypeError, ValueError), match=f"^weighted_info_nce: {name}"):
            weighted_info_nce(query, query, bank, **options)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("margin", -1.0, 0.5),
        ("positive_focus", 2.0**-20, 2.0),
        ("tau_plus", 2.0**-20, 0.125),
        ("max_inverse_temperature", 1.0, 9.0),
    ],
)
def test_a_setting_that_may_change_in_place_is_read_at_each_call(name, before, after) -> None:
    query, positive, bank = (unit(rows, 6).float() for rows in (5, 5, 9))
    setting = torch.tensor(before)
    found = []
    for value in (before, after):
        setting.fill_(value)
        found.append(weighted_info_nce(query, positive, bank, **{name: setting}))
        assert torch.equal(found[-1], weighted_info_nce(query, positive, bank, **{name: value}))
    assert not torch.equal(*found)
