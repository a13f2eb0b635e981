"""Both directions at once equal the mean of two calls of the one-way loss."""

import sys

import pytest
import torch

from sede_kernels import MemoryBank, SEDELoss, weighted_info_nce
from sede_kernels.backends import registry
from sede_kernels.backends._info_nce import Passes, around
from sede_kernels.backends.torch import bank_lse, batch_lse
from sede_kernels.functional import symmetric_info_nce
from tests.conftest import unit

OPTIONS = [
    {},
    {"hardness": 4.0, "in_batch_negatives": True},
    {"hardness": 4.0, "detach_weights": False, "margin": 0.2},
    {"false_negatives": "positive", "in_batch_negatives": True},
    {"positive_focus": 1.0, "tau_plus": 0.1, "reduction": "sum"},
    {"hardness": 3.0, "normalize_weights": False, "reduction": "none"},
]


def _leaves(dtype=torch.float64, rows=6, dim=8):
    return [unit(rows, dim).to(dtype).requires_grad_() for _ in range(4)]


def _two_calls(image, text, image_key, text_key, image_bank, text_bank, *, ids, **options):
    first = weighted_info_nce(image, text_key, text_bank, query_ids=ids, **options)
    second = weighted_info_nce(text, image_key, image_bank, query_ids=ids, **options)
    return (first + second) / 2


def _banks(kind):
    if kind == "memory":
        banks = [MemoryBank(32, 8, dtype=torch.float64) for _ in range(2)]
        for bank in banks:
            bank.enqueue(unit(20, 8), torch.arange(20) % 9)
        return banks
    if kind == "int8":
        banks = [MemoryBank(32, 8, dtype=torch.int8) for _ in range(2)]
        for bank in banks:
            bank.enqueue(unit(20, 8).float(), torch.arange(20) % 9)
        return banks
    if kind == "unlike":
        return [unit(30, 8), unit(41, 8)]
    if kind == "one side":
        return [unit(30, 8), None]
    return [unit(30, 8), unit(30, 8)]


@pytest.mark.parametrize("kind", ["dense", "memory", "int8", "unlike", "one side"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_two_calls_with_gradients(options, kind, backend) -> None:
    if kind == "one side":
        options = {**options, "in_batch_negatives": True}
    leaves, banks, ids = _leaves(), _banks(kind), torch.tensor([0, 1, 2, 2, 30, -1])
    outcome = []
    for function in (symmetric_info_nce, _two_calls):
        tau = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
        loss = function(*leaves, *banks, temperature=tau, ids=ids, backend=backend, **options)
        inputs = (*leaves, tau)
        grads = torch.autograd.grad(loss.sum(), inputs, allow_unused=True)
        outcome.append((loss.detach(), *grads))
    for got, want in zip(*outcome, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_agrees_with_the_reference(backend) -> None:
    leaves, banks, ids = _leaves(), _banks("memory"), torch.arange(6)
    outcome = []
    for chosen in (backend, "reference"):
        loss = symmetric_info_nce(*leaves, *banks, hardness=4.0, ids=ids, backend=chosen)
        outcome.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for got, want in zip(*outcome, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("kind,passes", [("dense", [2]), ("memory", [2]), ("unlike", [1, 1])])
def test_banks_that_are_alike_share_a_pass(kind, passes, monkeypatch) -> None:
    taken = []

    def counted(count, run):
        def pass_(*arguments):
            taken.append(count)
            return run(*arguments)

        return pass_

    run, _ = around(
        Passes(
            counted(1, bank_lse.bank_lse),
            counted(2, bank_lse.bank_lse_pair),
            batch_lse.batch_lse,
            batch_lse.batch_lse_backward,
            batch_lse.batch_lse_kept,
        )
    )
    banks = _banks(kind)
    monkeypatch.setattr(registry, "_function", lambda name, op: run)
    symmetric_info_nce(*_leaves(), *banks, backend="torch")
    assert taken == passes


def test_one_side_without_a_gradient(backend) -> None:
    image, text, image_key, text_key = (leaf.detach() for leaf in _leaves())
    banks = _banks("dense")
    text.requires_grad_()
    loss = symmetric_info_nce(image, text, image_key, text_key, *banks, backend=backend)
    (got,) = torch.autograd.grad(loss, text)
    (want,) = torch.autograd.grad(
        weighted_info_nce(text, image_key, banks[0], backend=backend) / 2, text
    )
    torch.testing.assert_close(got, want)


def test_compiles_whole_and_under_autocast() -> None:
    criterion = SEDELoss(32, 8, temperature=0.1, hardness=2.0, in_batch_negatives=True)
    criterion.enqueue(unit(20, 8).float(), unit(20, 8).float(), ids=torch.arange(20))
    image, text = unit(6, 8).float().requires_grad_(), unit(6, 8).float().requires_grad_()
    ids = torch.arange(6)

    def step(image, text):
        return criterion(image, text, image.detach(), text.detach(), ids=ids)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(step(image, text), (image, text))
    got = torch.autograd.grad(compiled(image, text), (image, text))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert step(image, text).dtype == torch.float32


@pytest.mark.parametrize(
    "change,message",
    [
        ({"text": unit(5, 8)}, r"text must be \(6, 8\) to match image, got \(5, 8\)"),
        ({"text_key": unit(6, 7)}, r"text_key must be \(6, 8\) to match image"),
        ({"image_key": unit(6, 7)}, r"image_key must be \(6, 8\) to match text"),
        ({"ids": torch.arange(5)}, r"ids must be \(6,\)"),
        ({"image_bank": None}, "bank is None"),
        ({"text_bank": unit(9, 7)}, r"bank must be \(K, 8\)"),
        ({"false_negatives": "positive"}, "pass ids"),
        ({"temperature": 0.0}, "temperature must be > 0"),
    ],
    ids=["text", "text_key", "image_key", "ids", "no bank", "width", "positive", "tau"],
)
def test_bad_input_gets_one_sentence(change, message) -> None:
    names = ("image", "text", "image_key", "text_key", "image_bank", "text_bank")
    given = dict(zip(names, (*_leaves(), *_banks("dense")), strict=True))
    with pytest.raises(ValueError, match="symmetric_info_nce: .*" + message):
        symmetric_info_nce(**{**given, **change})


@pytest.mark.parametrize("chosen", ["reference", "torch", "cpu"])
def test_statistics_of_both_directions_are_those_of_two_calls(chosen) -> None:
    leaves, banks, ids = _leaves(torch.float32), _banks("int8"), torch.arange(6)
    options = {"hardness": 4.0, "in_batch_negatives": True, "backend": chosen}
    loss, both = symmetric_info_nce(*leaves, *banks, ids=ids, return_stats=True, **options)
    torch.testing.assert_close(loss, symmetric_info_nce(*leaves, *banks, ids=ids, **options))
    image, text, image_key, text_key = leaves
    sides = ((image, text_key, banks[1]), (text, image_key, banks[0]))
    for stats, side in zip(both, sides, strict=True):
        _, alone = weighted_info_nce(*side, query_ids=ids, return_stats=True, **options)
        for got, want in zip(stats, alone, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("with_stats", [False, True])
def test_two_dtypes_give_the_mean_of_two_losses(with_stats, backend, monkeypatch) -> None:
    """Also through native code at once, which takes each direction for itself."""
    image, text = unit(5, 8).float().requires_grad_(), unit(5, 8).bfloat16().requires_grad_()
    image_key, text_key = unit(5, 8).float(), unit(5, 8).bfloat16()
    banks = [MemoryBank(7, 8) for _ in range(2)]
    for bank in banks:
        bank.enqueue(unit(6, 8).float(), torch.arange(6))
    options = {"temperature": 0.1, "hardness": 3.0, "backend": backend}
    ids = torch.arange(5)
    if backend == "cpu":
        monkeypatch.setattr(
            sys.modules["sede_kernels.functional.symmetric_info_nce"], "fused", None
        )
    found = symmetric_info_nce(
        image, text, image_key, text_key, *banks, ids=ids, return_stats=with_stats, **options
    )
    loss = found[0] if with_stats else found
    ways = [
        weighted_info_nce(query, key, bank, query_ids=ids, return_stats=True, **options)
        for query, key, bank in ((image, text_key, banks[1]), (text, image_key, banks[0]))
    ]
    want = (ways[0][0] + ways[1][0]) / 2
    assert loss.dtype == torch.float32 and torch.equal(loss, want)
    got, expected = (torch.autograd.grad(each, (image, text)) for each in (loss, want))
    assert all(map(torch.equal, got, expected))
    if with_stats:
        for stats, (_, one) in zip(found[1], ways, strict=True):
            assert all(map(torch.equal, stats, one))
