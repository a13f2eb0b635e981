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
INT8 = [
    "vsepp-hardest",
    "vsepp-all",
    "open_clip",
    "sentence_transformers",
    "moco",
    "lightly",
    "albef",
]


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


def test_accumulation_compiles_to_a_graph_a_call_of_the_step() -> None:
    """``accum_freq`` calls make a step; the count of calls starts again with each."""
    torch._dynamo.reset()
    counters.clear()
    module = TWINS["open_clip"].build(accum_freq=2)
    compiled = torch.compile(
        lambda left, right, ids: TWINS["open_clip"].step(module, left, right, ids),
        fullgraph=True,
        backend="eager",
    )
    for seed in range(6):
        compiled(*batch(seed // 2))
    assert counters["stats"]["unique_graphs"] == 2
    assert module.image_bank.ids.tolist() == [5, 6, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("name", TWINS)
def test_safetensors_saves_and_restores(name: str, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    settings = {"start_step": 2} if TWINS[name].warms else {}
    module, other = trained(name, **settings), TWINS[name].build(**settings)
    safetensors.save_file(module.state_dict(), tmp_path / "twin.safetensors")
    other.load_state_dict(safetensors.load_file(tmp_path / "twin.safetensors"))
    assert same_state(module, other)
    assert run(name, other, range(3, 6)) == run(name, module, range(3, 6))


@pytest.mark.parametrize("name", ["scan", "sgraf", "vsepp-all", "vsepp-hardest", "open_clip"])
def test_a_pair_that_is_not_finite_is_not_met_again(name: str) -> None:
    """Later losses are those of a bank that never got it, and finite."""
    twin = TWINS[name]
    module, want = twin.build(), twin.build()
    left, right, ids = batch(0)
    poisoned = left.detach().clone()
    poisoned[1] = torch.nan
    keys = (poisoned, right.detach().clone())
    keys[1][1] = torch.inf
    twin.step(module, *(key.requires_grad_() for key in keys), ids)
    keep = torch.tensor([0, 2])
    twin.step(want, left[keep], right[keep], ids[keep])
    for seed in (1, 2):
        batches = batch(seed), batch(seed)
        got, right_loss = twin.step(module, *batches[0]), twin.step(want, *batches[1])
        torch.testing.assert_close(got, right_loss)
        torch.testing.assert_close(
            torch.autograd.grad(got, batches[0][0]), torch.autograd.grad(right_loss, batches[1][0])
        )


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", INT8)
def test_an_int8_bank_made_under_another_default_dtype(name: str, default: torch.dtype) -> None:
    key = {"moco": "dtype", "albef": "dtype"}.get(name, "bank_dtype")
    settings = {key: torch.int8}
    torch.set_default_dtype(default)
    try:
        module = TWINS[name].build(**settings)
    finally:
        torch.set_default_dtype(torch.float32)
    want = TWINS[name].build(**settings)
    assert run(name, module, range(4)) == run(name, want, range(4))
    assert same_state(module, want)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_that_leaves_the_meta_device_is_new(name: str) -> None:
    settings = {"start_step": 2} if TWINS[name].warms else {}
    with torch.device("meta"):
        module = TWINS[name].build(**settings)
    module.to_empty(device="cpu")
    want = TWINS[name].build(**settings)
    assert run(name, module, range(4)) == run(name, want, range(4))
    assert same_state(module, want)


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


@pytest.mark.parametrize("name", TWINS)
def test_another_default_device_changes_nothing(name: str) -> None:
    """The meta device stands for the GPU of ``torch.set_default_device``."""
    batches = [batch(seed) for seed in range(4)]
    modules = [TWINS[name].build(), TWINS[name].build()]
    want = [TWINS[name].step(modules[0], *part) for part in batches]
    with torch.device("meta"):
        found = [TWINS[name].step(modules[1], *part) for part in batches]
    assert all(map(torch.equal, found, want)) and same_state(*modules)
