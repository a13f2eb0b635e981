"""What the hosts' trainers need beside the loss: pretraining without ids, MoCo's accuracies."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.moco import MoCoQueue
from tests.conftest import unit


def pretraining_loss(
    feats: list[Tensor], queues: tuple[Tensor, Tensor], temp: Tensor, alpha: float
) -> Tensor:
    """ALBEF's and BLIP's pretraining: the diagonal is right, mixed with the momentum softmax."""
    image, text, image_m, text_m = feats
    total = torch.zeros((), dtype=torch.float64)
    for query, query_m, key_m, queue in (
        (image, image_m, text_m, queues[1]),
        (text, text_m, image_m, queues[0]),
    ):
        keys = torch.cat([key_m.T, queue], 1)
        soft = F.softmax(query_m @ keys / temp, 1).detach()
        mixed = alpha * soft + (1 - alpha) * torch.eye(len(query), keys.shape[1])
        total = total - (F.log_softmax(query @ keys / temp, 1) * mixed).sum(1).mean() / 2
    return total


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_pretraining_without_ids_equals_the_host_from_its_checkpoint(alpha: float) -> None:
    columns = [unit(12, 8).T.contiguous() for _ in range(2)]
    state = dict(zip(("image_queue", "text_queue"), columns, strict=True))
    queues = RetrievalQueues(embed_dim=8, queue_size=12, dtype=torch.float64)
    queues.load_host({**state, "queue_ptr": torch.tensor([8])})
    assert len(queues.image_bank) == 12
    temp = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    feats = [unit(4, 8).requires_grad_(), unit(4, 8).requires_grad_(), unit(4, 8), unit(4, 8)]
    want = pretraining_loss(feats, (columns[0], columns[1]), temp, alpha)
    got = queues(*feats, temp=temp, alpha=alpha)
    torch.testing.assert_close(got, want)
    inputs = [*feats[:2], temp]
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))
    assert torch.equal(queues.image_queue[:, 8:], feats[2].T)
    assert queues.idx_queue.tolist() == [[-2] * 12]


def host_accuracy(q: Tensor, k: Tensor, queue: Tensor, topk: tuple[int, ...]) -> list[float]:
    """MoCo's: the key stands at column 0 of [q.k | q.queue]."""
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1)
    order = logits.argsort(dim=1, descending=True)
    return [(order[:, :place] == 0).any(dim=1).double().mean().item() * 100 for place in topk]


def test_moco_accuracies_are_the_host_s() -> None:
    queue = MoCoQueue(dim=4, K=20, dtype=torch.float64)
    q = unit(9, 4)
    k = F.normalize(q + 0.6 * unit(9, 4), dim=1)
    stored = unit(20, 4)
    queue.dequeue_and_enqueue(stored)
    found = queue.accuracy(q, k, topk=(1, 5, 10))
    want = host_accuracy(q, k, stored.T, (1, 5, 10))
    assert [value.shape for value in found] == [(1,)] * 3
    assert [value.item() for value in found] == pytest.approx(want)
    assert 0.0 < want[0] < want[2]


def test_moco_accuracies_leave_out_what_is_no_negative() -> None:
    queue = MoCoQueue(dim=4, K=6)
    q = torch.eye(4)[:2]
    assert [value.item() for value in queue.accuracy(q, q)] == [100.0, 100.0]  # nothing stored
    queue.dequeue_and_enqueue(q, [7, 8])
    ties = queue.accuracy(q, q)
    assert [value.item() for value in ties] == [0.0, 100.0]  # a tie is no hit
    assert queue.accuracy(q, q, ids=[7, 8])[0].item() == 100.0
    nan = torch.full_like(q, torch.nan)
    assert queue.accuracy(nan, q)[0].item() == 0.0
    with pytest.raises(ValueError, match="each of topk must be"):
        queue.accuracy(q, q, topk=(0,))
