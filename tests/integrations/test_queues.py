"""The MoCo, ALBEF and BLIP queues against the published losses on dense matrices."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.moco import MoCoQueue
from tests.conftest import unit


def moco_loss(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def test_moco_equals_cross_entropy_on_the_queue_at_any_batch_size() -> None:
    queue = MoCoQueue(dim=8, K=10, T=0.2, dtype=torch.float64)
    dense = torch.zeros(8, 10, dtype=torch.float64)
    pointer = 0
    for step, rows in enumerate((4, 4, 4, 7, 3, 13)):
        q, k = unit(rows, 8).requires_grad_(), unit(rows, 8)
        if step >= 3:
            ours, want = queue(q, k), moco_loss(q, k, dense, 0.2)
            torch.testing.assert_close(ours, want)
            torch.testing.assert_close(torch.autograd.grad(ours, q), torch.autograd.grad(want, q))
        queue.dequeue_and_enqueue(k)
        for key in k:  # one by one: the ring as the definition has it
            dense[:, pointer] = key
            pointer = (pointer + 1) % 10
        if step >= 2:
            torch.testing.assert_close(queue.queue, dense)
            assert queue.queue_ptr.tolist() == [pointer]


def test_moco_ids_hide_stored_keys_of_the_same_id() -> None:
    queue = MoCoQueue(dim=8, K=4, T=0.2, dtype=torch.float64)
    stored = unit(4, 8)
    queue.dequeue_and_enqueue(stored, [5, 6, 7, 8])
    q, k = unit(2, 8), unit(2, 8)
    rows = [
        moco_loss(q[:1], k[:1], stored[[0, 2, 3]].T, 0.2),
        moco_loss(q[1:], k[1:], stored.T, 0.2),
    ]
    torch.testing.assert_close(queue(q, k, ids=[6, 1]), torch.stack(rows).mean())


def test_moco_loads_a_host_checkpoint_and_resumes_from_its_own() -> None:
    columns = unit(10, 8, dtype=torch.float32).T.contiguous()
    state = {"module.queue": columns, "module.queue_ptr": torch.tensor([6])}
    queue = MoCoQueue(dim=8, K=10)
    queue.load_host(state, prefix="module.")
    q, k = unit(3, 8, dtype=torch.float32), unit(3, 8, dtype=torch.float32)
    torch.testing.assert_close(queue(q, k), moco_loss(q, k, columns, 0.07))
    assert queue.queue_ptr.tolist() == [6]
    resumed = MoCoQueue(dim=8, K=10)
    resumed.load_state_dict(copy.deepcopy(queue.state_dict()))
    for twin in (queue, resumed):
        twin.dequeue_and_enqueue(k)
    assert torch.equal(queue.queue, resumed.queue)
    assert torch.equal(queue.queue[:, 6:9], k.T)


class Retrieval(nn.Module):
    """What ALBEF and BLIP keep: (D, K) queues, (1, K) ids, -100 where nothing was written."""

    def __init__(self, size: int, pointer: str) -> None:
        super().__init__()
        self.register_buffer("image_queue", unit(size, 8).T.contiguous())
        self.register_buffer("text_queue", unit(size, 8).T.contiguous())
        self.register_buffer("idx_queue", torch.full((1, size), -100))
        self.register_buffer(pointer, torch.zeros(1, dtype=torch.long))
        self.temp = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.pointer = pointer

    def loss(self, feats: list[Tensor], idx: Tensor, alpha: float) -> Tensor:
        """The papers' contrastive loss with momentum distillation, on dense matrices."""
        image, text, image_m, text_m = feats
        targets = (idx.unsqueeze(1) == torch.cat([idx, self.idx_queue[0]])).double()
        targets = targets / targets.sum(1, keepdim=True)
        total = torch.zeros((), dtype=torch.float64)
        for query, query_m, key_m, queue in (
            (image, image_m, text_m, self.text_queue),
            (text, text_m, image_m, self.image_queue),
        ):
            keys = torch.cat([key_m.T, queue], 1)
            soft = F.softmax(query_m @ keys / self.temp, 1).detach()
            mixed = alpha * soft + (1 - alpha) * targets
            total = total - (F.log_softmax(query @ keys / self.temp, 1) * mixed).sum(1).mean() / 2
        return total

    def store(self, image_m: Tensor, text_m: Tensor, idx: Tensor) -> None:
        pointer = getattr(self, self.pointer)
        span = slice(int(pointer), int(pointer) + len(idx))
        self.image_queue[:, span], self.text_queue[:, span] = image_m.T, text_m.T
        self.idx_queue[0, span] = idx
        pointer[0] = (int(pointer) + len(idx)) % self.image_queue.shape[1]


def features(rows: int) -> list[Tensor]:
    trained = [unit(rows, 8).requires_grad_() for _ in range(2)]
    return [*trained, unit(rows, 8), unit(rows, 8)]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("pointer", ["queue_ptr", "ptr_queue"], ids=["albef", "blip"])
def test_queues_equal_the_host_over_steps_from_its_checkpoint(pointer: str, alpha: float) -> None:
    host = Retrieval(12, pointer)
    for _ in range(4):  # full, with several entries an id
        host.store(unit(4, 8), unit(4, 8), torch.randint(0, 5, (4,)))
    queues = RetrievalQueues(embed_dim=8, queue_size=12, dtype=torch.float64)
    queues.load_host({f"model.{k}": v for k, v in host.state_dict().items()}, prefix="model.")
    temp = host.temp.detach().clone().requires_grad_()
    for _ in range(4):
        feats, idx = features(4), torch.randint(0, 5, (4,))
        want = host.loss(feats, idx, alpha)
        host.store(feats[2], feats[3], idx)
        ours = queues(*feats, idx.view(-1, 1), temp=temp, alpha=alpha)
        torch.testing.assert_close(ours, want)
        torch.testing.assert_close(
            torch.autograd.grad(ours, [*feats[:2], temp]),
            torch.autograd.grad(want, [*feats[:2], host.temp]),
        )
        assert torch.equal(queues.image_queue, host.image_queue)
        assert torch.equal(queues.text_queue, host.text_queue)
        assert torch.equal(queues.idx_queue, host.idx_queue)
        assert torch.equal(queues.queue_ptr, getattr(host, pointer))


@pytest.mark.parametrize(
    ("pointer", "size"), [("queue_ptr", 65536), ("ptr_queue", 57600)], ids=["albef", "blip"]
)
def test_queues_load_the_published_checkpoint_shapes(
    pointer: str, size: int, tmp_path: Path
) -> None:
    """Through a file, among the model's other entries; the last 1,000 slots were never written."""
    columns = F.normalize(torch.randn(256, size), dim=0)
    idx = torch.arange(size) % 29000
    idx[-1000:] = -100
    saved = {
        "temp": torch.tensor(0.07),
        "image_queue": columns,
        "text_queue": columns.flip(1),
        "idx_queue": idx.view(1, -1),
        pointer: torch.tensor([size - 1000]),
    }
    torch.save({"model": saved}, tmp_path / "checkpoint.pth")
    queues = RetrievalQueues(256, size)
    queues.load_host(torch.load(tmp_path / "checkpoint.pth")["model"])
    torch.testing.assert_close(queues.image_queue[:, :-1000], columns[:, :-1000])
    assert torch.equal(queues.idx_queue, saved["idx_queue"])
    assert int(queues.queue_ptr) == len(queues.text_bank) == size - 1000
    feats = [unit(30, 256, dtype=torch.float32) for _ in range(4)]
    feats[0].requires_grad_()
    assert queues(*feats, torch.arange(30), temp=0.07).isfinite()
    assert int(queues.queue_ptr) == size - 970  # 30 divides neither size


def test_queues_of_a_half_filled_checkpoint_leave_the_noise_out() -> None:
    host = Retrieval(12, "queue_ptr")
    feats, idx = features(5), torch.tensor([3, 4, 4, 9, 1])
    host.store(feats[2], feats[3], idx)
    queues = RetrievalQueues(embed_dim=8, queue_size=12, dtype=torch.float64)
    queues.load_host(host.state_dict())
    assert len(queues.image_bank) == 5
    host.image_queue, host.text_queue = host.image_queue[:, :5], host.text_queue[:, :5]
    host.idx_queue = host.idx_queue[:, :5]
    new = features(3), torch.tensor([4, 0, 0])
    ours = queues(*new[0], new[1], temp=0.1, alpha=0.4)
    torch.testing.assert_close(ours, host.loss(*new, 0.4))


def test_queues_take_any_batch_size_and_evaluation_stores_nothing() -> None:
    queues = RetrievalQueues(embed_dim=8, queue_size=10, dtype=torch.float64)
    for rows in (4, 7, 13, 1):
        feats = features(rows)
        loss = queues(*feats, torch.arange(rows), temp=0.07, alpha=0.4)
        loss.backward()
        assert feats[0].grad.isfinite().all()
    assert len(queues.text_bank) == 10
    before = copy.deepcopy(queues.state_dict())
    with torch.no_grad():
        queues(*features(4), torch.arange(4), temp=0.07)
    queues.eval()
    queues(*features(4), torch.arange(4), temp=0.07)
    after = queues.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    resumed = RetrievalQueues(embed_dim=8, queue_size=10, dtype=torch.float64)
    resumed.load_state_dict(before)
    assert torch.equal(resumed.idx_queue, queues.idx_queue)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(lambda: MoCoQueue(T=0.0), "T must be > 0", id="T"),
        pytest.param(lambda: MoCoQueue(8, 10).load_host({}), "has no queue", id="names"),
        pytest.param(
            lambda: MoCoQueue(8, 10).load_host(
                {"queue": torch.ones(8, 9), "queue_ptr": torch.zeros(1)}
            ),
            r"must be a floating tensor \(8, 10\), got float32 \(8, 9\)",
            id="size",
        ),
        pytest.param(
            lambda: RetrievalQueues(8, 10).load_host({}), "has no image_queue", id="retrieval"
        ),
        pytest.param(
            lambda: RetrievalQueues(8, 10)(*features(2), [0, 1], temp=0.1, alpha=1.5),
            "alpha must be in",
            id="alpha",
        ),
        pytest.param(
            lambda: RetrievalQueues(8, 10)(*features(2), [0, 1, 2], temp=0.1),
            r"ids must be \(2,\)",
            id="idx",
        ),
    ],
)
def test_wrong_use_gets_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("learnt", [False, True], ids=["number", "parameter"])
def test_albef_validates_in_inference_mode_as_without_gradients(learnt: bool) -> None:
    """Lightning validates so; the momentum targets need a derivative of their own."""
    queues = RetrievalQueues(8, 6)
    temp: Tensor | float = nn.Parameter(torch.tensor(0.1)) if learnt else 0.1
    first = [unit(4, 8, dtype=torch.float32).requires_grad_() for _ in range(4)]
    queues(*first, temp=temp, alpha=0.4).backward()
    features = [unit(3, 8, dtype=torch.float32) for _ in range(4)]
    with torch.no_grad():
        want = queues(*features, temp=temp, alpha=0.4)
    with torch.inference_mode():
        copied = copy.deepcopy(queues)
        inside = [feature.clone() for feature in features]
        assert torch.equal(queues(*features, temp=temp, alpha=0.4), want)
        assert torch.equal(queues(*inside, temp=temp, alpha=0.4), want)
        assert torch.equal(copied(*inside, temp=temp, alpha=0.4), want)
    assert len(queues.image_bank) == 4


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_albef_takes_momentum_features_in_half(half: torch.dtype) -> None:
    """The value and gradient are those of the same numbers in double."""
    queues, wide = RetrievalQueues(8, 6), RetrievalQueues(8, 6)
    stored = [unit(5, 8, dtype=torch.float32) for _ in range(2)]
    for one in (queues, wide):
        one.dequeue_and_enqueue(*stored, torch.arange(5))
    features = [unit(3, 8, dtype=torch.float32).requires_grad_() for _ in range(2)]
    momentum = [unit(3, 8, dtype=half) for _ in range(2)]
    double = [feature.detach().double().requires_grad_() for feature in features]
    ids = torch.tensor([1, 1, 9])
    got = queues(*features, *momentum, ids, temp=0.2, alpha=0.4)
    want = wide(*double, *(part.double() for part in momentum), ids, temp=0.2, alpha=0.4)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(got, features)
    expected = torch.autograd.grad(want, double)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
