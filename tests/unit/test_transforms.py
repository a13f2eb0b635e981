"""Forward mode, torch.func and derivatives of gradients: right, or one sentence, for every op."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import sede_kernels as sede
from tests.conftest import CPU_BACKENDS, unit

Function = Callable[[Tensor, str], Tensor]
KEY, BANK, OTHER = (
    torch.nn.functional.normalize(
        torch.randn(n, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64), dim=1
    )
    for n in (4, 9, 10)
)
IDS = torch.tensor([0, 1, 1, 2])


def banked(x: Tensor, backend: str) -> Tensor:
    key, bank = KEY.to(x.dtype), BANK.to(x.dtype)
    return sede.weighted_info_nce(
        x, key, bank, temperature=0.5, hardness=2.0, detach_weights=False, query_ids=IDS,
        bank_ids=torch.arange(9), false_negatives="positive", backend=backend,
    )  # fmt: skip


def batch(query: Tensor, key: Tensor, backend: str) -> Tensor:
    return sede.weighted_info_nce(
        query, key, None, temperature=0.5, in_batch_negatives=True, backend=backend
    )


def by_temperature(x: Tensor, backend: str) -> Tensor:
    key, bank, tau = KEY.to(x.dtype), BANK.to(x.dtype), x.square().sum()
    return sede.weighted_info_nce(
        key, key.flip(0), bank, temperature=tau, hardness=2.0, backend=backend
    )


def symmetric(x: Tensor, backend: str) -> Tensor:
    key, bank, other = KEY.to(x.dtype), BANK.to(x.dtype), OTHER.to(x.dtype)[1:]
    return sede.symmetric_info_nce(x, key, key, key, bank, other, temperature=0.5, backend=backend)


def scored(x: Tensor, backend: str) -> Tensor:
    return sede.score_info_nce(x, temperature=0.5, hardness=2.0, detach_weights=False,
                               backend=backend)  # fmt: skip


def log_sum(x: Tensor, backend: str) -> Tensor:
    return sede.bank_lse(x, BANK.to(x.dtype), 2.0, backend=backend).sum()


def by_scales(x: Tensor, backend: str) -> Tensor:
    scales = x.square().sum().reshape(1)
    return sede.bank_lse(KEY.to(x.dtype), BANK.to(x.dtype), scales, backend=backend).sum()


def erase(x: Tensor, backend: str) -> Tensor:
    return sede.attention_erase(x.square(), backend=backend)[0][:, 0].sum()


def erase_only(x: Tensor, backend: str) -> Tensor:
    return sede.attention_erase(x, renormalize=False, backend=backend)[0][:, 0].sum()


def similarity(x: Tensor, backend: str) -> Tensor:
    return sede.cross_attention_similarity(x[None], KEY.to(x.dtype)[None], backend=backend).sum()


def pairs(x: Tensor, backend: str) -> Tensor:
    words = KEY.to(x.dtype)[None, None]
    return sede.cross_attention_pairs(x[None, None], words, backend=backend).sum()


def hardest(x: Tensor, backend: str) -> Tensor:
    return sede.hardest_negatives(x, BANK.to(x.dtype), 2, backend=backend)[0].sum()


OPS: dict[str, Function] = {
    "weighted_info_nce": banked,
    "weighted_info_nce of the batch": lambda x, b: batch(x, KEY.to(x.dtype), b),
    "weighted_info_nce by its key": lambda x, b: batch(KEY.to(x.dtype), x, b),
    "weighted_info_nce by its temperature": by_temperature,
    "symmetric_info_nce": symmetric,
    "score_info_nce": scored,
    "bank_lse": log_sum,
    "bank_lse by its scales": by_scales,
    "attention_erase": erase,
    "cross_attention_similarity": similarity,
    "cross_attention_pairs": pairs,
}
LINEAR: dict[str, Function] = {
    "hardest_negatives": hardest,
    "attention_erase as it is": erase_only,
}
EVERY = {**OPS, **LINEAR}
Transform = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


def dual(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, t))).tangent
    assert tangent is not None, "the tangent was dropped"
    return tangent


def penalty(f: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    value = f(x)
    (grad,) = torch.autograd.grad(value, x, create_graph=True)
    return torch.autograd.grad(value + (grad * t).sum(), x)[0]


FORWARD: dict[str, Transform] = {
    "forward_ad": dual,
    "func.jvp": lambda f, x, t: torch.func.jvp(f, (x,), (t,))[1],
    "func.jacfwd": lambda f, x, t: torch.func.jacfwd(f)(x),
    "func.linearize": lambda f, x, t: torch.func.linearize(f, x)[1](t),
}
REVERSE: dict[str, Transform] = {
    "func.grad": lambda f, x, t: torch.func.grad(f)(x),
    "func.vjp": lambda f, x, t: torch.func.vjp(f, x)[1](torch.ones((), dtype=x.dtype))[0],
    "func.jacrev": lambda f, x, t: torch.func.jacrev(f)(x),
    "vmap of func.grad": lambda f, x, t: torch.func.vmap(torch.func.grad(f))(
        torch.stack([x, t])
    ),
}  # fmt: skip
SECOND: dict[str, Transform] = {
    "penalty": penalty,
    "functional.hessian": lambda f, x, t: torch.autograd.functional.hessian(f, x),
    "functional.hvp": lambda f, x, t: torch.autograd.functional.hvp(f, x, t)[1],
    "func.hessian": lambda f, x, t: torch.func.hessian(f)(x),
    "func.grad of func.grad": lambda f, x, t: torch.func.grad(
        lambda y: (torch.func.grad(f)(y) * t).sum()
    )(x),
    "func.jvp of func.grad": lambda f, x, t: torch.func.jvp(torch.func.grad(f), (x,), (t,))[1],
}
REFUSED = {**FORWARD, **REVERSE, **SECOND}
SENTENCE = r"^\w+: the kernels have no [^;]+; pass backend='reference', which is plain autograd\.$"


def point(backend: str) -> tuple[Tensor, Tensor]:
    """Where a derivative is asked for, and in which direction; not all native kernels have fp64."""
    dtype = torch.float32 if backend == "cpu" else torch.float64
    return unit(4, 6, dtype=dtype), unit(4, 6, dtype=dtype)


@pytest.mark.parametrize("transform", REFUSED, ids=str)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_what_no_kernel_has_is_refused_in_one_sentence(op, transform, backend) -> None:
    x, t = point(backend)
    with pytest.raises(NotImplementedError, match=SENTENCE):
        REFUSED[transform](lambda y: OPS[op](y, backend), x, t)


@pytest.mark.parametrize("op", LINEAR, ids=str)
def test_linear_ops_have_the_right_second_derivative_none(op, backend) -> None:
    x, t = point(backend)
    got, want = (penalty(lambda y, b=b: LINEAR[op](y, b), x, t) for b in (backend, "reference"))
    torch.testing.assert_close(got, want)
    for transform in (*FORWARD, *REVERSE):
        with pytest.raises(NotImplementedError, match=SENTENCE):
            REFUSED[transform](lambda y: LINEAR[op](y, backend), x, t)
    x = x.requires_grad_()
    (grad,) = torch.autograd.grad(LINEAR[op](x, backend).square(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=SENTENCE):
        torch.autograd.grad(grad.sum(), x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", EVERY, ids=str)
def test_vmap_gives_each_element_its_own_call(op, backend) -> None:
    xs = torch.stack([point(backend)[0] for _ in range(3)])
    if op.endswith(("temperature", "scales")):
        xs = xs * torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    got = torch.func.vmap(lambda y: EVERY[op](y, backend))(xs)
    want = torch.stack([EVERY[op](x, "reference") for x in xs])
    rtol = 1e-4 if backend == "cpu" else 1e-9
    torch.testing.assert_close(got, want, rtol=rtol, atol=rtol / 10)


@pytest.mark.parametrize("op", EVERY, ids=str)
def test_the_reference_has_them_all(op) -> None:
    """By differences: forward mode, torch.func and the second derivative of the specification."""
    x, t = point("reference")
    h = 1e-5

    def f(y: Tensor) -> Tensor:
        return EVERY[op](y, "reference")

    slope = (f(x + h * t) - f(x - h * t)) / (2 * h)
    for name in ("forward_ad", "func.jvp"):
        torch.testing.assert_close(FORWARD[name](f, x, t), slope, rtol=1e-5, atol=1e-6)
    grad = torch.func.grad(f)(x)
    torch.testing.assert_close((grad * t).sum(), slope, rtol=1e-5, atol=1e-6)
    if op not in LINEAR and not op.startswith("weighted_info_nce"):
        bend = (torch.func.grad(f)(x + h * t) - torch.func.grad(f)(x - h * t)) / (2 * h)
        for name in ("func.grad of func.grad", "functional.hvp"):
            torch.testing.assert_close(SECOND[name](f, x, t), bend, rtol=1e-4, atol=1e-5)


def test_constants_inside_a_transform_are_served(backend) -> None:
    """A loss that the transform does not follow, a metric say, stops nobody."""
    x, t = point(backend)
    key = KEY.to(x.dtype)
    metric = OPS["weighted_info_nce"](key, backend)

    def f(y: Tensor) -> Tensor:
        return y.square().sum() + OPS["weighted_info_nce"](key, backend)

    torch.testing.assert_close(torch.func.grad(f)(x), 2 * x)
    value, tangent = torch.func.jvp(f, (x,), (t,))
    torch.testing.assert_close(value, x.square().sum() + metric)
    torch.testing.assert_close(tangent, 2 * (x * t).sum())


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_compiled_forward_mode_is_refused_too(backend) -> None:
    x, t = point(backend)
    for op in ("bank_lse", "attention_erase"):
        jvp = torch.compile(
            lambda y, v, op=op: torch.func.jvp(lambda z: OPS[op](z, backend), (y,), (v,))[1],
            backend="aot_eager",
        )
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            jvp(x, t)
