"""A default device other than that of the tensors changes nothing: ``torch.set_default_device``.

The meta device stands for a GPU: what is made there has no values, and so is seen.
"""

import pytest
import torch
from torch import Tensor

import sede_kernels as sede
from sede_kernels.monitor import BankMonitor
from tests.conftest import unit
from tests.unit.test_in_place import ALL


def outcome(name: str, x: Tensor, backend: str) -> tuple[Tensor, ...]:
    leaf = x.clone().requires_grad_()
    found = ALL[name](leaf, backend)
    return found.detach(), *torch.autograd.grad(found, leaf, torch.ones_like(found))


@pytest.mark.parametrize("plain", [False, True], ids=["backend", "reference"])
@pytest.mark.parametrize("name", ALL)
def test_functions_stay_on_the_device_of_their_tensors(name, plain, backend) -> None:
    x, chosen = unit(5, 6, dtype=torch.float32), "reference" if plain else backend
    want = outcome(name, x, chosen)
    with torch.device("meta"):
        found = outcome(name, x, chosen)
    for ours, theirs in zip(found, want, strict=True):
        assert torch.equal(ours, theirs)


class Written(dict):  # type: ignore[type-arg]
    """A writer that keeps the last number of each name."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self[name] = value


def run(criterion: sede.SEDELoss, slow: sede.MomentumEncoder, batches: list[Tensor]) -> Written:
    written = Written()
    monitor = BankMonitor(written, criterion, every=1)
    for step, (left, right) in enumerate(batches):
        slow.update(slow.module)
        image, text = slow(left).requires_grad_(), slow(right)
        ids = [4 * step, 4 * step + 1, 4 * step + 1]
        loss, stats = criterion(image, text, ids=ids, return_stats=True)
        loss.backward()
        known = torch.as_tensor(ids, device="cpu")
        monitor(step, loss.detach(), stats, image=image, text=text, ids=known)
        criterion.enqueue(image.detach(), text, ids=ids)
    return written


def test_a_run_stays_on_the_device_of_its_modules(backend) -> None:
    batches = list(unit(4, 2, 3, 6, dtype=torch.float32))
    criterion = sede.SEDELoss(7, 6, start_step=2, learn_temperature=True, backend=backend)
    slow = sede.MomentumEncoder(torch.nn.Linear(6, 6))
    want = run(criterion, slow, batches)
    state = {name: value.clone() for name, value in criterion.state_dict().items()}
    criterion.reset_parameters()
    with torch.device("meta"):
        found = run(criterion, slow, batches)
    assert found == want
    for name, value in criterion.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_recall_and_old_states_stay_on_the_device_of_their_tensors() -> None:
    images, texts = unit(9, 4, dtype=torch.float32), unit(12, 4, dtype=torch.float32)
    ids = torch.arange(9), torch.arange(12) % 9
    want = sede.recall_at_k(images, texts, image_ids=ids[0], text_ids=ids[1])
    bank = sede.MemoryBank(4, 4)
    bank.enqueue(images, ids[0])
    old = {name: value for name, value in bank.state_dict().items() if name != "rejected"}
    fresh = sede.MemoryBank(4, 4)
    with torch.device("meta"):
        assert sede.recall_at_k(images, texts, image_ids=ids[0], text_ids=ids[1]) == want
        fresh.load_state_dict(old, assign=True)  # of version 0.1.0, which counted no refusals
    assert all(map(torch.equal, fresh.buffers(), bank.buffers()))
