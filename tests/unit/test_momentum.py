"""Momentum encoders: exact averages in every precision, and state that survives."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sede_kernels import MomentumEncoder


def test_momentum_encoder_averages_parameters_and_copies_buffers() -> None:
    encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    slow = MomentumEncoder(encoder, momentum=0.9)
    start = copy.deepcopy(encoder.state_dict())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    encoder(torch.randn(8, 3))
    slow.update(encoder)
    for name, value in slow.module.named_parameters():
        torch.testing.assert_close(value.detach(), start[name] + 0.1)
        assert not value.requires_grad
    for slow_buffer, buffer in zip(slow.module.buffers(), encoder.buffers(), strict=True):
        assert torch.equal(slow_buffer, buffer)
    assert not slow(torch.randn(2, 3)).requires_grad
    other = MomentumEncoder(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), momentum=0.9)
    other.load_state_dict(slow.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(slow.eval()(x), other.eval()(x))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\], got 1.5"):
        MomentumEncoder(encoder, momentum=1.5)


HALF = [torch.bfloat16, torch.float16]


def moved_encoder(dtype: torch.dtype) -> tuple[nn.Module, MomentumEncoder, torch.Tensor]:
    encoder = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)).to(dtype)
    slow = MomentumEncoder(encoder, momentum=0.999)
    start = encoder[0].weight.detach().float().clone()
    with torch.no_grad():
        encoder[0].weight.add_(0.05)
    return encoder, slow, start


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_is_averaged_in_float32(dtype) -> None:
    encoder, slow, start = moved_encoder(dtype)
    want, target = start.double(), encoder[0].weight.detach().double()
    for _ in range(300):
        slow.update(encoder)
        want = 0.999 * want + 0.001 * target
    weight = slow.module[0].weight
    assert weight.dtype == dtype and not weight.requires_grad
    ulp = torch.finfo(dtype).eps * want.abs()
    assert ((weight.double() - want).abs() <= 0.51 * ulp + 1e-6).all()
    moved = float((weight.float() - start).mean()) / 0.05
    assert moved == pytest.approx(1 - 0.999**300, abs=0.02)  # 0.26 of the way; it stood still


@pytest.mark.parametrize("how", ["state_dict", "deepcopy", "pickle"])
def test_a_copied_momentum_encoder_goes_on_bit_for_bit(how) -> None:
    encoder, slow, _ = moved_encoder(torch.bfloat16)
    for _ in range(3):
        slow.update(encoder)
    if how == "state_dict":
        other = MomentumEncoder(nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16)).bfloat16())
        other.momentum = 0.999
        other.load_state_dict(slow.state_dict())
    else:
        other = copy.deepcopy(slow) if how == "deepcopy" else pickle.loads(pickle.dumps(slow))
    for _ in range(50):
        slow.update(encoder)
        other.update(encoder)
    assert list(slow.state_dict()) == list(other.state_dict())
    for name, value in slow.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_averages_stay_float32_and_follow_what_is_written_to_the_module() -> None:
    encoder, slow, _ = moved_encoder(torch.bfloat16)
    slow.update(encoder)
    slow.half().to(torch.bfloat16)
    kept = [b for name, b in slow.named_buffers() if name.startswith("masters.")]
    assert len(kept) == 4 and all(buffer.dtype == torch.float32 for buffer in kept)
    slow.module[0].weight.data.fill_(2.0)
    with torch.no_grad():
        encoder[0].weight.fill_(1.0)
    slow.update(encoder)
    assert float(slow.masters.get_buffer("0")[0, 0]) == pytest.approx(2.0 - 0.001)
    slow.float()
    encoder.float()
    slow.update(encoder)
    assert not [name for name, _ in slow.named_buffers() if name.startswith("masters.")]


def test_a_momentum_encoder_off_the_meta_device_begins_as_the_encoder() -> None:
    with torch.device("meta"):
        slow = MomentumEncoder(nn.Linear(3, 2), momentum=0.9)
    encoder = nn.Linear(3, 2)
    slow.to_empty(device="cpu")
    slow.update(encoder)
    assert torch.equal(slow.module.weight, encoder.weight)
    first = encoder.weight.detach().clone()
    with torch.no_grad():
        encoder.weight.add_(1.0)
    slow.update(encoder)
    torch.testing.assert_close(slow.module.weight.detach(), first + 0.1)


def test_a_momentum_encoder_says_what_it_cannot_follow() -> None:
    slow = MomentumEncoder(nn.Linear(3, 2), momentum=0.9)
    with pytest.raises(ValueError, match="an encoder of 2 parameters and 0 buffers"):
        slow.update(nn.Linear(3, 2, bias=False))
    with pytest.raises(TypeError, match="encoder must be a module, got int"):
        MomentumEncoder(3)
    slow.momentum = 0.0  # schedules may change it
    encoder = nn.Linear(3, 2)
    slow.update(encoder)
    assert torch.equal(slow.module.weight, encoder.weight)


def test_an_encoder_of_other_shapes_is_refused_before_anything_changes() -> None:
    """A weight of one row would spread over all rows of the average."""
    slow = MomentumEncoder(nn.Linear(2, 3), momentum=0.5)
    before = [parameter.clone() for parameter in slow.module.parameters()]
    for other in (nn.Linear(2, 1), nn.Linear(3, 3)):
        with pytest.raises(ValueError, match="an encoder like the one copied, got"):
            slow.update(other)
    assert all(map(torch.equal, before, slow.module.parameters()))
    normed = MomentumEncoder(nn.BatchNorm1d(3, affine=False))
    with pytest.raises(ValueError, match=r"got \(1,\) for a parameter or buffer of \(3,\)"):
        normed.update(nn.BatchNorm1d(1, affine=False))


def test_complex_parameters_are_averaged_too() -> None:
    encoder = nn.ParameterDict({"w": torch.tensor([1.0 + 2.0j, -1.0j])})
    slow = MomentumEncoder(encoder, momentum=0.75)
    with torch.no_grad():
        encoder["w"].fill_(1.0 - 2.0j)
    slow.update(encoder)
    want = torch.tensor([1.0 + 1.0j, 0.25 - 1.25j])
    torch.testing.assert_close(slow.module["w"].detach(), want)
