"""The op ``score_info_nce``: its contract with torch, and its module."""

import pytest
import torch
from torch.library import opcheck

from sede_kernels import ScoreInfoNCE, score_info_nce
from sede_kernels.ops.score_info_nce import score_info_nce as op
from sede_kernels.score_types import Scores
from sede_kernels.types import InfoNCERule, Scalars


@pytest.fixture(params=["torch"])
def backend(request):
    return request.param


RULES = {
    "plain": InfoNCERule(weighted=False),
    "weighted": InfoNCERule(weighted=True, reduction="none"),
    "attached": InfoNCERule(weighted=True, detach_weights=False, reduction="sum"),
    "positives": InfoNCERule(weighted=True, false_negatives="positive", normalize_weights=False),
}


def arguments(name, backend, *, own, dtype=torch.float64):
    """Of the op, with all that may be learnt learnt."""
    number = torch.float64 if dtype == torch.float64 else torch.float32
    scores = torch.randn(4, 9).to(dtype).requires_grad_()
    positive = None if own else torch.randn(4).to(dtype).requires_grad_()
    valid = torch.rand(4, 9) < 0.8
    temperature, hardness = (
        torch.tensor(value, dtype=number, requires_grad=True) for value in (0.3, 4.0)
    )
    given = Scores(scores, positive, valid, torch.arange(4), torch.arange(9) % 6 - 1)
    scalars = Scalars(1.0, 0.0, 0.0, temperature, hardness)
    return given, scalars, RULES[name]._replace(scalar_grad=True), backend


def leaves(given, scalars, *_):
    tensors = [given.scores, given.positive, scalars.temperature_at, scalars.hardness_at]
    return [tensor for tensor in tensors if tensor is not None]


@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("name", RULES)
def test_eager_calls_and_the_dispatcher_give_the_same_bits(name, own, backend) -> None:
    given = arguments(name, backend, own=own)
    direct = op(*given)
    through = torch.ops.sede.score_info_nce(*op.flat(*given))
    for got, want in zip(through, direct, strict=True):
        assert torch.equal(got, want)
    grads = [torch.autograd.grad(out[0].sum(), leaves(*given)) for out in (direct, through)]
    for got, want in zip(*grads, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("name", RULES)
def test_opcheck(name, own, backend) -> None:
    flat = op.flat(*arguments(name, backend, own=own, dtype=torch.float32))
    opcheck(torch.ops.sede.score_info_nce.default, flat)


@pytest.mark.parametrize("own", [True, False], ids=["diagonal", "positive"])
@pytest.mark.parametrize("detach", [True, False], ids=["detached", "attached"])
def test_gradcheck(own, detach, backend) -> None:
    """Detached weights are constants, which finite differences do not know: those are attached."""
    given, scalars, _, _ = arguments("weighted", backend, own=own)
    hardness = 0.0 if detach else scalars.hardness_at

    def loss(scores, temperature, *rest):
        return score_info_nce(
            scores,
            None if own else rest[-1],
            valid=given.valid,
            query_ids=given.ids,
            key_ids=given.key_ids,
            temperature=temperature,
            hardness=hardness if detach else rest[0],
            detach_weights=False,
            false_negatives="positive",
            reduction="none",
            backend=backend,
        )

    inputs = [given.scores, scalars.temperature_at]
    inputs += [] if detach else [scalars.hardness_at]
    assert torch.autograd.gradcheck(loss, (*inputs, *([] if own else [given.positive])))


def test_it_compiles_into_one_graph_and_follows_numbers(backend) -> None:
    """Numbers that change are inputs of the graph, not another graph."""
    scores = torch.randn(6, 6, requires_grad=True)

    def both(s, temperature, hardness):
        rows = score_info_nce(s, temperature=temperature, hardness=hardness, backend=backend)
        return rows + score_info_nce(s.t(), temperature=temperature, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=True)
    for temperature, hardness in ((0.1, 5.0), (0.2, 3.0), (0.3, 2.0)):
        got, want = (call(scores, temperature, hardness) for call in (compiled, both))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(
            torch.autograd.grad(got, scores), torch.autograd.grad(want, scores)
        )


def test_autocast_changes_nothing(backend) -> None:
    scores = torch.randn(5, 9, requires_grad=True)
    want = score_info_nce(scores, hardness=3.0, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        found = score_info_nce(scores, hardness=3.0, backend=backend)
    assert torch.equal(found, want)
    assert torch.equal(*(torch.autograd.grad(loss, scores)[0] for loss in (found, want)))


def test_vmap_is_one_call_an_element(backend) -> None:
    scores = torch.randn(3, 4, 9)
    found = torch.vmap(lambda s: score_info_nce(s, hardness=3.0, backend=backend))(scores)
    want = [score_info_nce(s, hardness=3.0, backend=backend) for s in scores]
    torch.testing.assert_close(found, torch.stack(want))


@pytest.mark.parametrize("learn", [False, True], ids=["numbers", "learnable"])
def test_the_module_is_the_function(learn, backend) -> None:
    scores, ids = torch.randn(5, 5, requires_grad=True), torch.tensor([0, 1, 1, 2, 3])
    options = {"detach_weights": False, "false_negatives": "positive", "reduction": "none"}
    module = ScoreInfoNCE(
        temperature=0.2, hardness=3.0, learn_temperature=learn, learn_hardness=learn,
        backend=backend, **options,
    )  # fmt: skip
    found, stats = module(scores, query_ids=ids, return_stats=True)
    want = score_info_nce(
        scores, query_ids=ids, temperature=0.2, hardness=3.0, backend=backend, **options
    )
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(stats.loss, want.detach())
    found.sum().backward()
    named = dict(module.named_parameters())
    assert set(named) == ({"log_inverse_temperature", "hardness"} if learn else set())
    for parameter in named.values():
        assert parameter.grad is not None and parameter.grad.abs() > 0
    state = {name: value.detach() + 1 for name, value in module.state_dict().items()}
    module.load_state_dict(state)
    module.reset_parameters()
    torch.testing.assert_close(module(scores, query_ids=ids), want)
    assert "false_negatives=positive" in repr(module)
