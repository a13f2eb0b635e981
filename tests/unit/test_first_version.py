"""Checkpoints of 0.1.0 with a learnable scalar: the optimizer goes on where it was."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sede_kernels import SEDELoss, WeightedInfoNCE, first_version

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam-loop": lambda p: torch.optim.Adam(p, lr=0.1, foreach=False, amsgrad=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}
GRADIENTS = (0.5, -2.0, 1.0, 0.25, -1.5)
STOP = 3


def step(optimizer: torch.optim.Optimizer, parameter: Tensor, number: int) -> None:
    parameter.grad = torch.full_like(parameter, GRADIENTS[number])
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("order", ["module first", "optimizer first"])
def test_the_optimizer_goes_on(name: str, order: str) -> None:
    make = OPTIMIZERS[name]
    # As 0.1.0 had it: a parameter without a dimension, saved after some steps and trained on.
    scalar = nn.Parameter(torch.tensor(-math.log(0.07)))
    old = make([scalar])
    for number in range(STOP):
        step(old, scalar, number)
    saved = {"log_inverse_temperature": scalar.detach().clone()}, old.state_dict()
    saved = torch.load(_stored(saved), weights_only=True)
    for number in range(STOP, len(GRADIENTS)):
        step(old, scalar, number)

    module = WeightedInfoNCE(learn_temperature=True)
    new = make(module.parameters())
    loads = [lambda: module.load_state_dict(saved[0]), lambda: new.load_state_dict(saved[1])]
    for load in loads if order == "module first" else reversed(loads):
        load()
    parameter = module.log_inverse_temperature
    assert parameter is not None and parameter.shape == (1,)
    for number in range(STOP, len(GRADIENTS)):
        step(new, parameter, number)
    assert torch.equal(parameter.detach()[0], scalar.detach())
    shapes = {value.shape for key, value in new.state[parameter].items()
              if isinstance(value, Tensor) and key != "step"}  # fmt: skip
    assert shapes == {torch.Size([1])}
    assert first_version._hook is None and not first_version._expected


def _stored(value: object) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def test_other_optimizers_are_left_alone_and_the_hook_ends() -> None:
    criterion = SEDELoss(4, 2, learn_temperature=True, learn_hardness=True)
    state = criterion.state_dict()
    criterion.load_state_dict(state)
    assert first_version._hook is None  # of this version: nothing to do
    criterion.load_state_dict(
        {key: v.reshape(()) if v.shape == (1,) and "nce" in key else v for key, v in state.items()}
    )
    assert len(first_version._expected) == 2
    other = nn.Linear(1, 1)
    unrelated = torch.optim.SGD(other.parameters(), lr=1.0, momentum=0.5)
    other(torch.ones(1, 1)).sum().backward()
    unrelated.step()
    assert len(first_version._expected) == 2
    del criterion  # whoever was to be helped is gone
    unrelated.step()
    assert first_version._hook is None
