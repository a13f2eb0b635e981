"""What checkpoints of version 0.1.0 need beyond their modules: the state of an optimizer.

Learnable scalars had no dimension then and have one element now. An optimizer restores its state
as it was saved, without looking at shapes, and its first step would fail. Once a module has loaded
such a scalar, the next step of the optimizer that holds it gives the state the scalar's shape.
"""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers

#: Scalars whose optimizer may hold a state of version 0.1.0, by identity.
_expected: "weakref.WeakValueDictionary[int, nn.Parameter]" = weakref.WeakValueDictionary()
_hook: Any = None


def expect_state_without_dimension(parameter: nn.Parameter | None) -> None:
    """Watch for the first step of the optimizer that holds this parameter.

    Until then each step of any optimizer in the process looks at its parameters once more.

    Args:
        parameter: one that was just loaded from a tensor without a dimension; None is ignored.
    """
    global _hook  # noqa: PLW0603
    if parameter is None:
        return
    _expected[id(parameter)] = parameter
    if _hook is None:
        _hook = optimizers.register_optimizer_step_pre_hook(_before_a_step)


def _before_a_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    global _hook  # noqa: PLW0603
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            expected = _expected.get(id(parameter))
            if expected is not None and expected is parameter:
                _give_shape(optimizer.state.get(expected, {}), expected)
                del _expected[id(parameter)]
    if not _expected and _hook is not None:
        _hook.remove()
        _hook = None


def _give_shape(state: dict[str, Any], parameter: nn.Parameter) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim == 0 and name != "step":
            state[name] = value.reshape(parameter.shape)
