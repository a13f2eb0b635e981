"""The pytorch-metric-learning twins against the real package, in its trainer, saved and resumed."""

import copy
import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import unit


@pytest.fixture
def twin(metric_learning: ModuleType) -> ModuleType:
    return importlib.import_module("sede_kernels.integrations.metric_learning")


@pytest.fixture
def host(metric_learning: ModuleType) -> ModuleType:
    return importlib.import_module("pytorch_metric_learning.losses")


def problem(rows: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, classes, (rows,)) - 1  # labels may be negative
    return unit(rows, 8).mul(1.7).requires_grad_(), labels


def assert_same(ours: Tensor, want: Tensor, inputs: Tensor) -> None:
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(want, inputs))


@pytest.mark.parametrize("distance", ["CosineSimilarity", "LpDistance", "DotProductSimilarity"])
@pytest.mark.parametrize("reducer", ["MeanReducer", "AvgNonZeroReducer", "ThresholdReducer"])
def test_equals_ntxent_with_every_distance_and_reducer(
    twin: ModuleType, host: ModuleType, distance: str, reducer: str
) -> None:
    distances = importlib.import_module("pytorch_metric_learning.distances")
    reducers = importlib.import_module("pytorch_metric_learning.reducers")

    def settings() -> dict[str, object]:
        chosen = getattr(reducers, reducer)
        return {
            "distance": getattr(distances, distance)(),
            "reducer": chosen(low=0.5) if reducer == "ThresholdReducer" else chosen(),
        }

    embeddings, labels = problem()
    ours = twin.WeightedNTXentLoss(temperature=0.2, **settings())(embeddings, labels)
    want = host.NTXentLoss(temperature=0.2, **settings())(embeddings, labels)
    assert_same(ours, want, embeddings)


def test_equals_ntxent_with_miners_reference_and_regularizer(
    twin: ModuleType, host: ModuleType
) -> None:
    miners = importlib.import_module("pytorch_metric_learning.miners")
    regularizers = importlib.import_module("pytorch_metric_learning.regularizers")
    embeddings, labels = problem()
    for miner in (miners.TripletMarginMiner(margin=0.3), miners.MultiSimilarityMiner(epsilon=0.2)):
        pairs = miner(embeddings, labels)
        ours = twin.WeightedNTXentLoss()(embeddings, labels, pairs)
        assert_same(ours, host.NTXentLoss()(embeddings, labels, pairs), embeddings)
    other, other_labels = problem(9)
    ours = twin.WeightedNTXentLoss()(embeddings, labels, ref_emb=other, ref_labels=other_labels)
    want = host.NTXentLoss()(embeddings, labels, ref_emb=other, ref_labels=other_labels)
    assert_same(ours, want, embeddings)
    keywords = {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}
    ours = twin.WeightedNTXentLoss(**keywords)(embeddings, labels)
    assert_same(ours, host.NTXentLoss(**keywords)(embeddings, labels), embeddings)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]], ids=["no-negative", "no-positive"])
def test_without_pairs_the_loss_is_zero_as_in_the_host(
    twin: ModuleType, host: ModuleType, labels: list[int]
) -> None:
    embeddings = unit(4, 8).requires_grad_()
    ours = twin.WeightedNTXentLoss()(embeddings, torch.tensor(labels))
    assert ours == host.NTXentLoss()(embeddings, torch.tensor(labels)) == 0
    ours.backward()


def test_weights_equal_the_formula(twin: ModuleType) -> None:
    embeddings, labels = problem()
    ours = twin.WeightedNTXentLoss(temperature=0.2, hardness=3.0)(embeddings, labels)
    cosine = nn.functional.normalize(embeddings, dim=1)
    cosine = cosine @ cosine.T
    rows = []
    for a, p in zip(*torch.where(labels.unsqueeze(1) == labels), strict=True):
        if a != p:
            s = cosine[a][labels != labels[a]]
            weight = len(s) * torch.softmax(3.0 * s.detach(), 0)
            rows.append(torch.log1p((weight * ((s - cosine[a, p]) / 0.2).exp()).sum()))
    assert_same(ours, torch.stack(rows).mean(), embeddings)


def test_sub_losses_and_records_follow_the_package(twin: ModuleType) -> None:
    loss = twin.WeightedNTXentLoss(hardness=1.0)
    assert loss.sub_loss_names() == ["loss"]
    assert {"temperature", "hardness"} <= set(loss._record_these)


@pytest.mark.parametrize("mask", [False, True], ids=["all", "enqueue-mask"])
@pytest.mark.parametrize("hardness", [0.0, 3.0], ids=["even", "weighted"])
def test_memory_equals_the_real_memory_with_its_own_pairs(
    twin: ModuleType, host: ModuleType, hardness: float, mask: bool
) -> None:
    """Value and gradient over a wrap; the fused pass against the pairs that the host lists."""
    ours = twin.CrossBatchMemory(twin.WeightedNTXentLoss(0.2, hardness), 8, memory_size=20)
    real = host.CrossBatchMemory(host.NTXentLoss(0.2), 8, memory_size=20)
    # The host's own memory takes losses by class name only.
    real.loss = twin.WeightedNTXentLoss(0.2, hardness) if hardness else real.loss
    for rows in (8, 8, 8, 6, 8):
        embeddings, labels = problem(rows)
        keywords = {"enqueue_mask": torch.arange(rows) % 2 == 0} if mask else {}
        got, want = (m(embeddings, labels, **keywords) for m in (ours, real))
        torch.testing.assert_close(got, want)
        if got.requires_grad:
            assert_same(got, want, embeddings)
    assert torch.equal(ours.embedding_memory, real.embedding_memory)
    assert torch.equal(ours.label_memory, real.label_memory)
    assert (ours.queue_idx, ours.has_been_filled) == (real.queue_idx, real.has_been_filled)


def test_memory_equals_the_real_memory_with_other_losses_miners_and_pairs(
    twin: ModuleType, host: ModuleType
) -> None:
    miners = importlib.import_module("pytorch_metric_learning.miners")
    for make, miner in (
        (host.ContrastiveLoss, None),
        (host.TripletMarginLoss, miners.TripletMarginMiner(margin=0.2)),
    ):
        ours = twin.CrossBatchMemory(make(), 8, memory_size=16, miner=miner)
        real = host.CrossBatchMemory(make(), 8, memory_size=16, miner=miner)
        for given in (None, None, "own"):
            embeddings, labels = problem(8, classes=2)
            pairs = miners.TripletMarginMiner()(embeddings, labels) if given else None
            assert_same(
                ours(embeddings, labels, pairs), real(embeddings, labels, pairs), embeddings
            )


def test_memory_state_survives(twin: ModuleType) -> None:
    def build() -> nn.Module:
        return twin.CrossBatchMemory(twin.WeightedNTXentLoss(), 8, memory_size=20).double()

    memory = build()
    for _ in range(3):
        memory(*problem(8))
    resumed = build()
    resumed.load_state_dict(copy.deepcopy(memory.state_dict()))
    assert (resumed.queue_idx, resumed.has_been_filled) == (4, True)
    data = problem(8)
    assert torch.equal(memory(*data), resumed(*data))
    assert torch.equal(memory.embedding_memory, resumed.embedding_memory)
    resumed.reset_queue()
    assert (resumed.queue_idx, resumed.has_been_filled) == (0, False)


def test_memory_takes_a_batch_larger_than_itself_and_any_loss(
    twin: ModuleType, host: ModuleType
) -> None:
    memory = twin.CrossBatchMemory(twin.WeightedNTXentLoss(), 8, memory_size=6)
    embeddings, labels = problem(11)
    memory(embeddings, labels).backward()
    # Slot k of the ring holds the row that was written there last.
    want = {(position % 6): position for position in range(11)}
    for slot, row in want.items():
        assert torch.equal(memory.embedding_memory[slot], embeddings[row].detach())
    with pytest.raises(Exception, match="not supported"):
        host.CrossBatchMemory(host.MultiSimilarityLoss.__mro__[1](mat_based_loss=True), 8)


def test_memory_stores_nothing_outside_training(twin: ModuleType) -> None:
    memory = twin.CrossBatchMemory(twin.WeightedNTXentLoss(), 8, memory_size=20)
    memory(*problem(8))
    before = copy.deepcopy(memory.state_dict())
    with torch.no_grad():
        inside = memory(*problem(8))
    memory.eval()
    memory(*problem(8))
    assert inside.isfinite()
    after = memory.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_trains_inside_the_real_trainer(twin: ModuleType) -> None:
    trainers = importlib.import_module("pytorch_metric_learning.trainers")
    samplers = importlib.import_module("pytorch_metric_learning.samplers")
    labels = torch.arange(48) % 4
    centres = unit(4, 8, dtype=torch.float32)
    points = centres[labels] + 0.3 * torch.randn(48, 8)
    data = [(point, int(label)) for point, label in zip(points, labels, strict=True)]
    trunk = nn.Linear(8, 8)
    loss = twin.WeightedNTXentLoss(hardness=1.0)
    memory = twin.CrossBatchMemory(loss, 8, memory_size=32)
    with torch.no_grad():
        before = float(loss(trunk(points), labels))
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.2)},
        batch_size=16,
        loss_funcs={"metric_loss": memory},
        dataset=data,
        sampler=samplers.MPerClassSampler(labels, m=4, length_before_new_iter=48),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    trainer.train(num_epochs=4)
    with torch.no_grad():
        after = float(loss(trunk(points), labels))
    assert after < before
    assert memory.has_been_filled


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        pytest.param({"temperature": 0.0}, "temperature must be > 0", id="tau"),
        pytest.param({"hardness": -1.0}, "hardness must be >= 0", id="beta"),
    ],
)
def test_wrong_settings_get_one_sentence(
    twin: ModuleType, settings: dict[str, float], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        twin.WeightedNTXentLoss(**settings)


def test_wrong_masks_get_one_sentence(twin: ModuleType) -> None:
    memory = twin.CrossBatchMemory(twin.WeightedNTXentLoss(), 8)
    embeddings, labels = problem(4)
    with pytest.raises(ValueError, match="pass one"):
        memory(embeddings, labels, (labels, labels, labels), torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"must be bool \(4,\), one per row, got bool \(3,\)"):
        memory(embeddings, labels, enqueue_mask=torch.ones(3, dtype=torch.bool))


LABELS = {
    "floats": torch.tensor([0.5, 0.5, -1.0, -1.0, 2.0, 2.0]),
    "bools": torch.tensor([True, True, False, False, True, False]),
    "bytes": torch.tensor([-128, -128, 127, 127, 0, 0], dtype=torch.int8),
    "unsigned": torch.tensor([200, 200, 100, 100, 0, 0], dtype=torch.uint8),
    "hashes": torch.tensor([-(2**63), -(2**63), 2**63 - 1, 2**63 - 1, -1, -1]),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("hardness", [0.0, 2.0], ids=["plain", "weighted"])
def test_labels_of_any_dtype_and_value_are_told_apart(
    twin: ModuleType, host: ModuleType, name: str, hardness: float
) -> None:
    """The memory read at once gives what the pairs one by one give."""
    labels = LABELS[name]
    first, inputs = unit(6, 8), unit(6, 8).requires_grad_()
    ours = twin.CrossBatchMemory(twin.WeightedNTXentLoss(0.1, hardness), 8, 16)
    theirs = host.NTXentLoss(0.1) if not hardness else twin.WeightedNTXentLoss(0.1, hardness)
    want = host.CrossBatchMemory(host.NTXentLoss(0.1), 8, 16)
    want.loss = theirs  # whose pairs the host lists
    for memory in (ours, want):
        memory(first.clone().requires_grad_(), labels)
    assert_same(ours(inputs, labels), want(inputs, labels), inputs)
