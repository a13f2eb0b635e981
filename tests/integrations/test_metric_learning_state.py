"""The cross-batch memory in every wrapper, and its sentences."""

import copy
import io
import pickle
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import unit
from tests.integrations.test_messages import BAD_COUNTS, BAD_POSITIVE, BAD_WEIGHTS, sentence

SIZE, DIM = 10, 8


@pytest.fixture(scope="module")
def twin(metric_learning: ModuleType) -> ModuleType:
    from sede_kernels.integrations import metric_learning as module

    return module


def batch(seed: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return unit(rows, DIM, dtype=torch.float32).requires_grad_(), torch.arange(rows) % 3


def build(twin: ModuleType) -> Any:
    return twin.CrossBatchMemory(twin.WeightedNTXentLoss(0.1, 2.0), DIM, SIZE)


def run(memory: nn.Module, seeds: range) -> list[float]:
    return [memory(*batch(seed)).item() for seed in seeds]


def saved(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved,
}


@pytest.mark.parametrize("steps", [2, 5], ids=["filling", "full"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_goes_on_alone(twin: ModuleType, how: str, steps: int) -> None:
    memory = build(twin)
    run(memory, range(steps))
    other, before = COPIES[how](memory), copy.deepcopy(memory.state_dict())
    losses = run(other, range(steps, steps + 3))
    after = memory.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert losses == run(memory, range(steps, steps + 3))


@pytest.mark.parametrize("steps", [2, 5], ids=["filling", "full"])
def test_safetensors_and_a_state_of_version_0_1_0(
    twin: ModuleType, steps: int, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    memory, new, old = build(twin), build(twin), build(twin)
    run(memory, range(steps))
    state = dict(memory.state_dict())
    safetensors.save_file(state, tmp_path / "memory.safetensors")
    new.load_state_dict(safetensors.load_file(tmp_path / "memory.safetensors"))
    position = {
        "queue_idx": int(state.pop("ptr")),
        "has_been_filled": int(state.pop("count")) == SIZE,
    }
    assert position == {"queue_idx": 8, "has_been_filled": False} or steps == 5
    old.load_state_dict({**state, "_extra_state": position})
    want = run(memory, range(steps, steps + 3))
    assert run(new, range(steps, steps + 3)) == run(old, range(steps, steps + 3)) == want


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ptr", SIZE, f"ptr must lie in [0, {SIZE - 1}], got {SIZE}"),
        ("ptr", -1, f"ptr must lie in [0, {SIZE - 1}], got -1"),
        ("count", SIZE + 1, f"count must lie in [0, {SIZE}], got {SIZE + 1}"),
        ("count", -2, f"count must lie in [0, {SIZE}], got -2"),
    ],
)
def test_a_damaged_position_is_refused_and_the_memory_kept(
    twin: ModuleType, name: str, value: int, words: str
) -> None:
    memory, other = build(twin), build(twin)
    run(memory, range(2))
    run(other, range(3, 5))
    before = {key: tensor.clone() for key, tensor in other.state_dict().items()}
    with pytest.raises(RuntimeError, match=re.escape(words)):
        other.load_state_dict({**memory.state_dict(), name: torch.tensor(value)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in other.state_dict().items())


def test_the_host_s_names_read_and_set_the_position(twin: ModuleType) -> None:
    memory = build(twin)
    run(memory, range(2))
    assert (memory.queue_idx, memory.has_been_filled, int(memory.count)) == (8, False, 8)
    memory.has_been_filled = True
    assert int(memory.count) == SIZE
    memory.queue_idx = 3
    assert (int(memory.ptr), int(memory.count)) == (3, SIZE)
    memory.has_been_filled = False
    assert int(memory.count) == 3
    memory.queue_idx = 5
    assert int(memory.count) == 5
    memory.reset_queue()
    assert (memory.queue_idx, memory.has_been_filled, int(memory.count)) == (0, False, 0)


def test_memory_from_the_meta_device_is_empty_once_reset(twin: ModuleType) -> None:
    with torch.device("meta"):
        memory = build(twin)
    memory.to_empty(device="cpu")
    memory.ptr.fill_(10**12)
    memory.reset_parameters()
    assert run(memory, range(4)) == run(build(twin), range(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_cast_leaves_position_and_labels_alone(twin: ModuleType, dtype: torch.dtype) -> None:
    memory = build(twin)
    run(memory, range(2))
    labels = memory.label_memory.clone()
    memory.to(dtype)
    assert memory.ptr.dtype == memory.count.dtype == memory.label_memory.dtype == torch.int64
    assert torch.equal(memory.label_memory, labels) and memory.queue_idx == 8
    embeddings, classes = batch(2)
    assert memory(embeddings.to(dtype), classes).isfinite()


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_row_that_is_not_finite_is_never_stored(twin: ModuleType, value: float) -> None:
    """The loss of its own batch is lost; those of later batches are as if it had never come."""
    memory, want = build(twin), build(twin)
    embeddings, labels = batch(0)
    poisoned = embeddings.detach().clone()
    poisoned[1] = value
    memory(poisoned.requires_grad_(), labels)
    keep = torch.tensor([0, 2, 3])
    want(embeddings.detach()[keep].requires_grad_(), labels[keep])
    assert memory.queue_idx == 3
    assert run(memory, range(1, 5)) == run(want, range(1, 5))


def test_wrong_settings_are_named_at_construction(twin: ModuleType) -> None:
    loss = twin.WeightedNTXentLoss()
    for wrong in (0, *BAD_COUNTS):
        for argument in ("embedding_size", "memory_size"):
            settings = {"embedding_size": DIM, argument: wrong}
            assert f"{argument} must be an integer >= 1" in sentence(
                lambda settings=settings: twin.CrossBatchMemory(loss, **settings)
            )
    for wrong in BAD_POSITIVE:
        assert "temperature must be" in sentence(
            lambda wrong=wrong: twin.WeightedNTXentLoss(temperature=wrong)
        )
    for wrong in BAD_WEIGHTS:
        assert "hardness must be" in sentence(
            lambda wrong=wrong: twin.WeightedNTXentLoss(hardness=wrong)
        )
    assert "loss must be" in sentence(lambda: twin.CrossBatchMemory("NTXent", DIM))
    assert "miner must be" in sentence(lambda: twin.CrossBatchMemory(loss, DIM, miner="hard"))


ROWS = torch.ones(4, DIM)
CLASSES = torch.arange(4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(4, DIM + 1), CLASSES), f"embeddings must be a floating tensor (B, {DIM})"),
        ((ROWS.long(), CLASSES), "embeddings must be a floating tensor"),
        ((ROWS, [0, 1, 2, 3]), "labels must be a tensor (4,), one per row, got a list of 4"),
        ((ROWS, CLASSES[:3]), "labels must be a tensor (4,), one per row, got int64 (3,)"),
        ((ROWS, CLASSES, (CLASSES,)), "indices_tuple must be 3 or 4 index tensors"),
        ((ROWS, CLASSES, None, CLASSES), "enqueue_mask must be bool (4,), one per row"),
    ],
    ids=["width", "integers", "list", "labels", "indices", "mask"],
)
def test_a_wrong_batch_is_named_and_nothing_is_stored(
    twin: ModuleType, arguments: tuple[Any, ...], words: str
) -> None:
    memory = build(twin)
    run(memory, range(1))
    before = copy.deepcopy(memory.state_dict())
    assert words in sentence(lambda: memory(*arguments))
    after = memory.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
