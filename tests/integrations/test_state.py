"""State of the twins in every wrapper: compiled, saved, copied, pickled, cast, of version 0.1.0."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.integrations.twins import TWINS, WARMING, batch, run

#: The criteria on fragments share one code; it reads counts, so it compiles in pieces.
COMPILED = [*(name for name, twin in TWINS.items() if twin.compiles), "sgraf"]


def trained(name: str, steps: int = 3, **settings: object) -> nn.Module:
    module = TWINS[name].build(**settings)
    run(name, module, range(steps))
    return module


def same_state(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_is_the_plain_one_and_one_graph_for_the_whole_run(name: str) -> None:
    """The bank wraps on the way, so the backward pass must not read what was written since."""
    torch._dynamo.reset()
    counters.clear()
    twin = TWINS[name]
    settings = {"start_step": 2} if twin.warms else {}
    module, plain = twin.build(**settings), twin.build(**settings)
    compiled = torch.compile(
        lambda left, right, ids: twin.step(module, left, right, ids),
        fullgraph=twin.compiles,
        backend="aot_eager",
    )
    for seed in range(5):
        got, want = batch(seed), batch(seed)
        ours, right = compiled(*got), twin.step(plain, *want)
        torch.testing.assert_close(ours, right)
        torch.testing.assert_close(
            torch.autograd.grad(ours, got[0])[0], torch.autograd.grad(right, want[0])[0]
        )
    assert not twin.compiles or counters["stats"]["unique_graphs"] == 1
    assert same_state(module, plain)


@pytest.mark.parametrize("name", TWINS)
def test_safetensors_saves_and_restores(name: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    settings = {"start_step": 2} if TWINS[name].warms else {}
    module, other = trained(name, **settings), TWINS[name].build(**settings)
    safetensors.save_file(module.state_dict(), tmp_path / "twin.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "twin.safetensors"))
    assert same_state(module, other)
    assert run(name, other, range(3, 6)) == run(name, module, range(3, 6))


@pytest.mark.parametrize("name", WARMING)
def test_a_state_of_version_0_1_0_loads(name: str) -> None:
    """It counted the enqueues in a Python number under ``_extra_state``."""
    module = trained(name, start_step=2)
    state = dict(module.state_dict())
    old = {"_extra_state": int(state.pop("steps")), **state}
    other = TWINS[name].build(start_step=2)
    assert not other.load_state_dict(old).missing_keys
    assert int(other.steps) == 3
    assert run(name, other, range(3, 6)) == run(name, module, range(3, 6))
    nested = nn.ModuleDict({"criterion": TWINS[name].build(start_step=2)})
    nested.load_state_dict({f"criterion.{key}": value for key, value in old.items()})
    assert same_state(nested["criterion"], module) or run(name, nested["criterion"], range(1))


def torch_saved(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": torch_saved,
}


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_alone(name: str, how: str) -> None:
    module = trained(name)
    other, before = COPIES[how](module), copy.deepcopy(module.state_dict())
    losses = run(name, other, range(3, 6))
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert losses == run(name, module, range(3, 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", TWINS)
def test_a_cast_leaves_counters_and_ids_alone(name: str, dtype: torch.dtype) -> None:
    module = trained(name, **({"start_step": 2} if TWINS[name].warms else {}))
    before = {k: v for k, v in module.state_dict().items() if not v.is_floating_point()}
    before = {k: v.clone() for k, v in before.items()}
    module.to(dtype)
    after = module.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(after[key].dtype == value.dtype for key, value in before.items())
    loss = TWINS[name].step(module, *batch(4, dtype))
    assert loss.isfinite()
