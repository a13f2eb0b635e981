"""VSE++ and VSE-infinity twins against the published hinge and inside the hosts' loop."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.integrations import vse_infinity, vsepp
from tests.conftest import unit
from tests.integrations import published


def twins(max_violation: bool, **settings: object) -> dict[str, vsepp.ContrastiveLoss]:
    opt = SimpleNamespace(embed_size=16)
    return {
        "vsepp": vsepp.ContrastiveLoss(
            margin=0.2, measure="cosine", max_violation=max_violation, dim=16, **settings
        ),
        "vse_infinity": vse_infinity.ContrastiveLoss(
            opt=opt, margin=0.2, max_violation=max_violation, **settings
        ),
    }


@pytest.mark.parametrize("pairs", [1, 9], ids=["one", "batch"])
@pytest.mark.parametrize("max_violation", [False, True], ids=["sum", "max"])
@pytest.mark.parametrize("host", ["vsepp", "vse_infinity"])
def test_criterion_equals_the_host_in_value_and_gradient(
    host: str, max_violation: bool, pairs: int
) -> None:
    im, s = unit(pairs, 16).requires_grad_(), unit(pairs, 16).requires_grad_()
    ours = twins(max_violation)[host](im, s)
    want = published.hinge(im @ s.T, 0.2, max_violation)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (im, s)), torch.autograd.grad(want, (im, s))
    )


@pytest.mark.parametrize("max_violation", [False, True], ids=["sum", "max"])
def test_order_embeddings_equal_the_host(max_violation: bool) -> None:
    im, s = unit(6, 16).abs().requires_grad_(), unit(6, 16).abs().requires_grad_()
    excess = F.relu(s.unsqueeze(0) - im.unsqueeze(1))
    scores = -excess.pow(2).sum(2).sqrt()
    ours = vsepp.ContrastiveLoss(0.05, "order", max_violation)(im, s)
    want = published.hinge(scores, 0.05, max_violation)
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (im, s)), torch.autograd.grad(want, (im, s))
    )


def test_order_embeddings_have_a_finite_gradient_where_a_pair_is_in_order() -> None:
    im = torch.ones(3, 4, requires_grad=True)
    vsepp.ContrastiveLoss(0.2, "order")(im, torch.zeros(3, 4)).backward()
    assert im.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"max_violation": True}, id="hardest"),
        pytest.param({"max_violation": False}, id="all"),
        pytest.param({"max_violation": False, "hardness": 4.0}, id="weighted"),
        pytest.param({"max_violation": False, "temperature": 0.1, "hardness": 4.0}, id="nce"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int8], ids=["fp64", "int8"])
def test_bank_negatives_equal_a_dense_loop(settings: dict[str, object], dtype: torch.dtype) -> None:
    criterion = twins(bank_size=6, bank_dtype=dtype, **settings)["vsepp"]
    first = unit(4, 16), unit(4, 16)
    criterion(first[0].requires_grad_(), first[1], ids=[0, 1, 2, 3])
    stored = [bank.dense(torch.float64)[:4] for bank in (criterion.image_bank, criterion.text_bank)]
    im, s = unit(4, 16).requires_grad_(), unit(4, 16).requires_grad_()
    ids = torch.tensor([3, 4, 4, 9])
    ours = criterion(im, s, ids=ids.tolist())
    want = torch.zeros((), dtype=torch.float64)
    for query, key, bank in ((im, s, stored[1]), (s, im, stored[0])):
        for i in range(4):
            positive = query[i] @ key[i]
            negatives = torch.stack(
                [query[i] @ key[j] for j in range(4) if ids[j] != ids[i]]
                + [query[i] @ bank[j] for j in range(4) if j != ids[i]]
            )
            weight = torch.ones_like(negatives)
            if "hardness" in settings:
                weight = len(negatives) * torch.softmax(4.0 * negatives.detach(), 0)
            cost = F.relu(0.2 + negatives - positive)
            if "temperature" in settings:
                total = (weight * (negatives / 0.1).exp()).sum()
                want = want + torch.log1p(total / (positive / 0.1).exp())
            else:
                want = want + (cost.max() if settings["max_violation"] else (weight * cost).sum())
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.int8 else {"rtol": 1e-8, "atol": 0}
    torch.testing.assert_close(ours, want, **tolerance)
    for got, expected in zip(
        torch.autograd.grad(ours, (im, s)), torch.autograd.grad(want, (im, s)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


class Host:
    """The hosts' loop in outline: encoder, criterion, optimiser, switch of the hard negatives."""

    def __init__(self) -> None:
        self.encoder = nn.Linear(12, 16)
        self.criterion = twins(False, bank_size=20, start_step=1)["vse_infinity"]
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=1e-2)
        self.parts = (self.encoder, self.criterion, self.optimizer)

    def state(self) -> list[dict[str, object]]:
        return [copy.deepcopy(part.state_dict()) for part in self.parts]

    def embed(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        data = torch.randn(count, 12, generator=generator)
        noisy = data + torch.randn(count, 12, generator=generator)
        return F.normalize(self.encoder(data), dim=1), F.normalize(self.encoder(noisy), dim=1)

    def epoch(self, seed: int) -> list[float]:
        generator = torch.Generator().manual_seed(seed)
        losses = []
        for count in (8, 8, 5):
            im, s = self.embed(count, generator)
            loss = self.criterion(im, s, ids=tuple(range(count)))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses


def test_host_loop_resumes_bit_for_bit_and_validation_stores_nothing() -> None:
    model = Host()
    model.criterion.max_violation_off()
    model.epoch(1)
    model.criterion.max_violation_on()
    model.epoch(2)
    saved = model.state()
    with torch.no_grad():
        model.criterion(*model.embed(8, torch.Generator()))
    assert torch.equal(model.criterion.text_bank.rows, saved[1]["text_bank.rows"])
    straight = model.epoch(3)
    assert min(straight) > 0
    resumed = Host()
    resumed.criterion.max_violation_on()
    for part, state in zip(resumed.parts, saved, strict=True):
        part.load_state_dict(state)
    assert len(resumed.criterion.text_bank) == 20
    assert resumed.criterion.steps == 6
    assert resumed.epoch(3) == straight


def test_momentum_keys_are_stored_in_place_of_the_batch() -> None:
    criterion = twins(True, bank_size=4)["vsepp"]
    keys = unit(3, 16, dtype=torch.float32), unit(3, 16, dtype=torch.float32)
    im = unit(3, 16, dtype=torch.float32).requires_grad_()
    criterion(im, unit(3, 16, dtype=torch.float32), keys=keys)
    assert torch.equal(criterion.image_bank.rows[:3], keys[0])
    assert torch.equal(criterion.text_bank.rows[:3], keys[1])


@pytest.mark.parametrize("measure", ["cosine", "order"])
def test_evaluation_equals_sorting_every_row(measure: str) -> None:
    rng = np.random.default_rng(3)
    images = np.repeat(np.abs(rng.normal(size=(12, 16))), 5, axis=0)
    captions = np.abs(images + rng.normal(size=images.shape))
    im, s = torch.from_numpy(images[::5]), torch.from_numpy(captions)
    sims = im @ s.T
    if measure == "order":
        sims = -F.relu(s.unsqueeze(0) - im.unsqueeze(1)).pow(2).sum(2).sqrt()
    want = published.recall(sims.numpy(), 5)
    for index, function in enumerate((vsepp.i2t, vsepp.t2i)):
        _, (ranks, _) = function(images, captions, measure=measure, return_ranks=True)
        np.testing.assert_array_equal(ranks, want[index])
    if measure == "cosine":
        sims = vse_infinity.compute_sim(images[::5], captions)
        assert vse_infinity.i2t(12, sims) == vsepp.i2t(images, captions)
        assert vse_infinity.t2i(12, sims, mode="coco") == vsepp.t2i(images, captions)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(lambda: vsepp.ContrastiveLoss(bank_size=8), "needs dim too", id="dim"),
        pytest.param(
            lambda: vsepp.ContrastiveLoss(measure="order", bank_size=8, dim=4),
            "need the inner product",
            id="order-bank",
        ),
        pytest.param(
            lambda: vsepp.ContrastiveLoss()(torch.ones(2, 3), torch.ones(3, 3)),
            r"both be \(B, D\), got \(2, 3\) and \(3, 3\)",
            id="shape",
        ),
        pytest.param(lambda: vsepp.ContrastiveLoss(hardness=-1.0), "hardness", id="hardness"),
        pytest.param(lambda: vsepp.ContrastiveLoss(start_step=-1), "start_step", id="start"),
        pytest.param(
            lambda: vsepp.i2t(np.ones((2, 4)), np.ones((10, 4))), "come repeated", id="repeated"
        ),
    ],
)
def test_wrong_use_gets_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_list_of_floats_is_no_list_of_ids() -> None:
    with pytest.raises(TypeError, match="ids must be integers"):
        vsepp.ContrastiveLoss()(torch.ones(1, 3), torch.ones(1, 3), ids=[0.5])


def test_criterion_without_a_bank_saves_nothing_but_its_steps() -> None:
    assert list(vsepp.ContrastiveLoss(margin=0.2).state_dict()) == ["steps"]
