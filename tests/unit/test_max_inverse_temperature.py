"""``max_inverse_temperature``: 1 / tau is at most this, and the fixed maximum may then be used."""

import pytest
import torch

from sede_kernels import SEDELoss, WeightedInfoNCE, symmetric_info_nce, weighted_info_nce
from sede_kernels.functional import _fused
from tests.conftest import unit

with torch.random.fork_rng():
    torch.manual_seed(5)
    QUERY, KEY, BANK = unit(5, 8), unit(5, 8), unit(19, 8)
#: Below the bound's temperature of 0.1, and above it.
TEMPERATURES = [0.02, 0.25]


def loss_and_gradients(tau, backend, dtype=torch.float32, **options):
    query = QUERY.to(dtype).requires_grad_()
    loss = weighted_info_nce(
        query, KEY.to(dtype), BANK.to(dtype), temperature=tau, hardness=3.0, backend=backend,
        **options,
    )  # fmt: skip
    learned = [query, tau] if isinstance(tau, torch.Tensor) else [query]
    return [loss.detach(), *torch.autograd.grad(loss, learned, allow_unused=True)]


@pytest.mark.parametrize("number", TEMPERATURES)
def test_a_learned_temperature_is_clamped(number, backend) -> None:
    tau = torch.tensor(number, requires_grad=True)
    got = loss_and_gradients(tau, backend, max_inverse_temperature=10.0)
    exact = torch.tensor(max(number, 0.1), dtype=torch.float64, requires_grad=True)
    want = loss_and_gradients(exact, "reference", torch.float64)
    if number < 0.1:
        want[2] = torch.zeros(())  # the bound holds it
    for value, truth in zip(got, want, strict=True):
        away = (value.double() - truth.double()).abs().max()
        assert away <= 3e-6 * truth.abs().max()  # of the largest: small entries are differences


@pytest.mark.parametrize("number", TEMPERATURES)
def test_a_number_is_clamped_too(number, backend) -> None:
    got = loss_and_gradients(number, backend, max_inverse_temperature=10.0)
    want = loss_and_gradients(max(number, 0.1), backend)
    for value, other in zip(got, want, strict=True):
        assert torch.equal(value, other)


def test_the_host_knows_that_a_fixed_maximum_serves(monkeypatch) -> None:
    seen = []
    original = _fused.ops.info_nce.info_nce

    def run(side, other, scalars, rule, backend):
        seen.append(rule.unit_length)
        return original(side, other, scalars, rule, backend)

    monkeypatch.setattr(_fused.ops.info_nce, "info_nce", run)
    tau, beta = torch.tensor(0.1), torch.tensor(1.0)
    for most, hardness in ((None, 1.0), (20.0, 1.0), (42.5, 1.0), (20.0, beta)):
        weighted_info_nce(
            QUERY, KEY, BANK, temperature=tau, hardness=hardness, unit_length=True,
            max_inverse_temperature=most, backend="torch",
        )  # fmt: skip
    assert seen == [False, True, False, False]


def test_a_module_at_its_cap_keeps_the_gradient_of_its_temperature() -> None:
    module = WeightedInfoNCE(temperature=0.1, learn_temperature=True, max_inverse_temperature=10.0)
    with torch.no_grad():
        module.log_inverse_temperature.fill_(5.0)
    loss = module(QUERY, KEY, BANK)
    torch.testing.assert_close(loss.detach(), WeightedInfoNCE(temperature=0.1)(QUERY, KEY, BANK))
    loss.backward()
    tau = torch.tensor(0.1, requires_grad=True)
    weighted_info_nce(QUERY, KEY, BANK, temperature=tau).backward()
    want = -0.1 * tau.grad.reshape(1)  # d tau / d log(1 / tau) = -tau
    torch.testing.assert_close(module.log_inverse_temperature.grad, want)


@pytest.mark.parametrize("training", [True, False])
def test_both_directions_are_bounded_and_a_fixed_temperature_is_not(training) -> None:
    batch = QUERY, KEY, QUERY, KEY, None, None
    both = SEDELoss(
        8, 8, temperature=0.1, learn_temperature=True, max_inverse_temperature=10.0
    ).train(training)
    with torch.no_grad():
        both.nce.log_inverse_temperature.fill_(5.0)
    want = symmetric_info_nce(*batch, temperature=0.1, in_batch_negatives=True)
    torch.testing.assert_close(both(QUERY, KEY).detach(), want, rtol=1e-4, atol=1e-6)
    fixed = SEDELoss(8, 8, temperature=0.05, max_inverse_temperature=10.0)
    want = symmetric_info_nce(*batch, temperature=0.05, in_batch_negatives=True)
    torch.testing.assert_close(fixed(QUERY, KEY), want)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none(wrong) -> None:
    with pytest.raises(ValueError, match="max_inverse_temperature must be"):
        weighted_info_nce(QUERY, KEY, BANK, max_inverse_temperature=wrong)
    with pytest.raises(ValueError, match="max_inverse_temperature must be"):
        WeightedInfoNCE(max_inverse_temperature=wrong)


def test_a_temperature_below_zero_is_refused_before_it_is_clamped() -> None:
    for tau in (-0.1, torch.tensor(-0.1)):
        with pytest.raises(ValueError, match="temperature must be"):
            weighted_info_nce(QUERY, KEY, BANK, temperature=tau, max_inverse_temperature=10.0)
