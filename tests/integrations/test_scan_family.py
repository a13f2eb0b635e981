"""SCAN, BFAN, SGRAF and IMRAM twins against the published formulas and inside the hosts' loop."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sede_kernels.integrations import bfan, imram, scan, sgraf
from tests.conftest import unit
from tests.integrations import published


def options(**changes: object) -> SimpleNamespace:
    values = {
        "cross_attn": "t2i",
        "raw_feature_norm": "clipped_l2norm",
        "agg_func": "LogSumExp",
        "lambda_softmax": 9.0,
        "lambda_lse": 6.0,
        "embed_size": 16,
        "focal_type": "equal",
    }
    return SimpleNamespace(**{**values, **changes})


def batch(pairs: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, list[int]]:
    """B images of 6 regions and B captions of up to 7 words, longest first as the hosts sort."""
    lengths = sorted((int(n) for n in torch.randint(1, 8, (pairs,))), reverse=True)
    return unit(pairs, 6, 16, dtype=dtype), unit(pairs, 7, 16, dtype=dtype), lengths


@pytest.mark.parametrize("agg_func", ["LogSumExp", "Mean", "Max", "Sum"])
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_scan_scores_equal_the_published_formula(direction: str, agg_func: str) -> None:
    opt = options(cross_attn=direction, agg_func=agg_func)
    images, captions, lengths = batch(5)
    images.requires_grad_(), captions.requires_grad_()
    ours = getattr(scan, f"xattn_score_{direction}")(images, captions, lengths, opt)
    host = published.scan_scores(images, captions, lengths, opt)
    torch.testing.assert_close(ours, host, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(host)
    for got, want in zip(
        torch.autograd.grad((ours * weight).sum(), (images, captions)),
        torch.autograd.grad((host * weight).sum(), (images, captions)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("focal", ["equal", "prob"])
def test_bfan_score_equals_the_published_double_sum(focal: str) -> None:
    opt = options(lambda_softmax=20.0, focal_type=focal)
    images, captions, lengths = batch(4)
    lengths = [max(n, 2) for n in lengths]  # one word has no attention above its mean: 0 / 0
    ours = bfan.xattn_score(images, captions, torch.tensor(lengths), opt)
    host = published.bfan_scores(images, captions, lengths, opt)
    torch.testing.assert_close(ours, host, rtol=1e-9, atol=1e-10)


def test_bfan_score_of_a_one_word_caption_is_finite() -> None:
    images, captions, _ = batch(2)
    assert bfan.xattn_score(images, captions, [1, 1], options()).isfinite().all()


@pytest.mark.parametrize("max_violation", [False, True], ids=["sum", "max"])
@pytest.mark.parametrize("pairs", [1, 8, 5], ids=["one", "full", "ragged"])
def test_scan_criterion_equals_the_host_in_value_and_gradient(
    pairs: int, max_violation: bool
) -> None:
    opt = options()
    images, captions, lengths = batch(pairs)
    images.requires_grad_(), captions.requires_grad_()
    criterion = scan.ContrastiveLoss(opt=opt, margin=0.2, max_violation=max_violation)
    ours = criterion(images, captions, lengths)
    host = published.hinge(
        published.scan_scores(images, captions, lengths, opt), 0.2, max_violation
    )
    torch.testing.assert_close(ours, host, rtol=1e-9, atol=1e-9)
    for got, want in zip(
        torch.autograd.grad(ours, (images, captions)),
        torch.autograd.grad(host, (images, captions)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("temperature", [None, 0.1], ids=["hinge", "nce"])
@pytest.mark.parametrize("hardness", [0.0, 4.0], ids=["even", "weighted"])
def test_bank_negatives_equal_a_dense_loop(temperature: float | None, hardness: float) -> None:
    opt = options()
    criterion = scan.ContrastiveLoss(
        opt,
        margin=0.2,
        bank_size=6,
        regions=6,
        bank_dtype=torch.float64,
        temperature=temperature,
        hardness=hardness,
    )
    first, second = batch(4), batch(4)
    first[0].requires_grad_()
    criterion(*first, ids=[0, 1, 2, 3])
    second[0].requires_grad_(), second[1].requires_grad_()
    ids = torch.tensor([3, 4, 4, 9])
    ours = criterion(*second, ids=ids)

    def direction(to_text: bool) -> Tensor:
        """Rows of the pairwise scores against batch and stored keys, one query at a time."""
        total = torch.zeros((), dtype=torch.float64)
        stored = (first[0].detach(), first[1], first[2])
        own = published.scan_scores(*second, opt)
        if to_text:
            other = published.scan_scores(second[0], stored[1], stored[2], opt)
        else:
            own, other = own.T, published.scan_scores(stored[0], second[1], second[2], opt).T
        for i in range(4):
            s = torch.stack(
                [own[i, j] for j in range(4) if ids[j] != ids[i]]
                + [other[i, j] for j in range(4) if j != ids[i]]
            )
            positive = own[i, i]
            weight = torch.ones_like(s)
            if hardness:
                weight = len(s) * torch.softmax(hardness * s.detach(), 0)
            if temperature is None:
                total = total + (weight * (0.2 + s - positive).clamp(min=0)).sum()
            else:
                negatives = (weight * (s / temperature).exp()).sum()
                total = total + torch.log1p(negatives / (positive / temperature).exp())
        return total

    host = direction(True) + direction(False)
    torch.testing.assert_close(ours, host, rtol=1e-8, atol=1e-8)
    for got, want in zip(
        torch.autograd.grad(ours, second[:2]), torch.autograd.grad(host, second[:2]), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


class Host:
    """The hosts' model class in outline: encoders, criterion, list state dict, Adam, clipping."""

    def __init__(self, opt: SimpleNamespace, bank_size: int, regions: int = 6) -> None:
        self.img_enc, self.txt_enc = nn.Linear(20, opt.embed_size), nn.Embedding(30, opt.embed_size)
        self.criterion = scan.ContrastiveLoss(
            opt=opt, margin=0.2, max_violation=True, bank_size=bank_size, regions=regions
        )
        self.params = [*self.txt_enc.parameters(), *self.img_enc.parameters()]
        self.optimizer = torch.optim.Adam(self.params, lr=2e-3)

    def state_dict(self) -> list[dict[str, object]]:
        modules = (self.img_enc, self.txt_enc, self.criterion)
        return [copy.deepcopy(m.state_dict()) for m in modules]

    def load_state_dict(self, state: list[dict[str, object]]) -> None:
        for module, saved in zip((self.img_enc, self.txt_enc, self.criterion), state, strict=True):
            module.load_state_dict(saved)

    def train_start(self) -> None:
        self.img_enc.train(), self.txt_enc.train(), self.criterion.train()

    def val_start(self) -> None:
        self.img_enc.eval(), self.txt_enc.eval(), self.criterion.eval()

    def forward_emb(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        norm = nn.functional.normalize
        return norm(self.img_enc(images), dim=2), norm(self.txt_enc(words), dim=2)

    def forward_loss(self, im: Tensor, s: Tensor, lengths: list[int], ids: object = None) -> Tensor:
        return self.criterion(im, s, lengths, ids)

    def train_emb(self, images: Tensor, words: Tensor, lengths: list[int], ids: list[int]) -> float:
        im, s = self.forward_emb(images, words)
        self.optimizer.zero_grad()
        loss = self.forward_loss(im, s, lengths, ids=[i // 5 for i in ids])
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 2.0)
        self.optimizer.step()
        return loss.item()


Batch = tuple[Tensor, Tensor, list[int], list[int]]


def loader(seed: int, counts: tuple[int, ...] = (8, 8, 3), regions: int = 6) -> list[Batch]:
    """Batches, the last one ragged; ids are caption numbers, as a tuple of ints."""
    generator = torch.Generator().manual_seed(seed)
    out, start = [], 0
    for count in counts:
        images = torch.randn(count, regions, 20, generator=generator)
        words = torch.randint(0, 30, (count, 12), generator=generator)
        lengths = sorted(torch.randint(1, 13, (count,), generator=generator).tolist())[::-1]
        out.append((images, words[:, : lengths[0]], lengths, list(range(start, start + count))))
        start += count
    return out


def test_published_sizes_train_validate_and_resume() -> None:
    """Batches of 128 and a last one of 104, 36 regions, as SCAN runs on Flickr30K."""
    opt = options(embed_size=32)
    model = Host(opt, bank_size=160, regions=36)
    first, last = loader(3, (128, 104), regions=36)
    for images, words, lengths, _ in (first, last):  # ids unknown, nothing stored: the host's sum
        with torch.no_grad():
            im, s = model.forward_emb(images, words)
            want = published.hinge(published.scan_scores(im, s, lengths, opt), 0.2, True)
            torch.testing.assert_close(model.forward_loss(im, s, lengths), want)
    assert len(model.criterion.text_bank) == 0
    model.train_emb(*first)
    saved = model.state_dict(), copy.deepcopy(model.optimizer.state_dict())
    after = model.train_emb(*last)
    assert len(model.criterion.image_bank) == 160  # 128 + 104 wrap
    resumed = Host(opt, bank_size=160, regions=36)
    resumed.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    assert resumed.train_emb(*last) == after


@pytest.mark.parametrize("no_grad", [True, False], ids=["no_grad", "eval"])
def test_host_loop_learns_stores_ids_and_validation_stores_nothing(no_grad: bool) -> None:
    """Ports validate under ``no_grad``, or as published: ``volatile`` has no effect any more."""
    model = Host(options(), bank_size=12)
    losses = []
    for _ in range(8):
        model.train_start()
        losses.append(sum(model.train_emb(*data) for data in loader(3)))
        before = copy.deepcopy(model.criterion.state_dict())
        if not no_grad:
            model.val_start()
        with torch.set_grad_enabled(not no_grad):
            for images, words, lengths, _ in loader(4):
                model.forward_loss(*model.forward_emb(images, words), lengths)
        after = model.criterion.state_dict()
        assert all(
            torch.equal(before[k], after[k]) for k in before if isinstance(before[k], Tensor)
        )
    assert losses[-1] < losses[1]
    assert len(model.criterion.text_bank) == 12
    assert set(model.criterion.text_bank.ids.tolist()) <= {0, 1, 2, 3}


def test_host_resumes_bit_for_bit_from_its_list_state_dict() -> None:
    torch.manual_seed(1)
    model = Host(options(), bank_size=12)
    for data in loader(5):
        model.train_emb(*data)
    saved, optimizer = model.state_dict(), copy.deepcopy(model.optimizer.state_dict())
    straight = [model.train_emb(*data) for data in loader(6)]
    resumed = Host(options(), bank_size=12)
    resumed.load_state_dict(saved)
    resumed.optimizer.load_state_dict(optimizer)
    assert [resumed.train_emb(*data) for data in loader(6)] == straight


def test_gradient_accumulation_stores_each_part_once() -> None:
    model = Host(options(), bank_size=32)
    for images, words, lengths, ids in loader(7):
        (model.forward_loss(*model.forward_emb(images, words), lengths, ids) / 3).backward()
    assert model.criterion.text_bank.ids[:19].tolist() == list(range(19))
    assert len(model.criterion.image_bank) == 19


def test_warm_up_stores_before_the_bank_counts() -> None:
    criterion = scan.ContrastiveLoss(options(), margin=0.2, bank_size=64, regions=6, start_step=2)
    plain = scan.ContrastiveLoss(options(), margin=0.2)
    same = []
    for _ in range(3):
        images, captions, lengths = batch(4, torch.float32)
        images.requires_grad_()
        same.append(bool(criterion(images, captions, lengths) == plain(images, captions, lengths)))
    assert same == [True, True, False]


@pytest.mark.parametrize("max_violation", [False, True], ids=["sum", "max"])
def test_sgraf_and_imram_criteria_on_scores(max_violation: bool) -> None:
    scores = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    host = published.hinge(scores, 0.2, max_violation)
    for criterion in (
        sgraf.ContrastiveLoss(margin=0.2, max_violation=max_violation),
        imram.ContrastiveLoss(options(), 0.2, max_violation),
    ):
        ours = criterion(scores)
        torch.testing.assert_close(ours, host)
        torch.testing.assert_close(
            torch.autograd.grad(ours, scores), torch.autograd.grad(host, scores, retain_graph=True)
        )


def test_sgraf_bank_uses_the_model_score_and_trains_it() -> None:
    class SimEnc(nn.Module):
        """A learnt score with the host's loop over captions and its lengths."""

        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(16, 1)

        def forward(self, images: Tensor, captions: Tensor, lengths: list[int]) -> Tensor:
            columns = []
            for caption, length in zip(captions, lengths, strict=True):
                difference = (images.mean(1) - caption[:length].mean(0)).pow(2)
                columns.append(torch.sigmoid(self.out(difference)))
            return torch.cat(columns, 1)

    sim_enc = SimEnc()
    criterion = sgraf.ContrastiveLoss(
        margin=0.2, max_violation=True, score=sim_enc, bank_size=20, dim=16, regions=6
    )
    assert not list(criterion.parameters())  # the score belongs to the model, not to the criterion
    for step in range(3):
        images, captions, lengths = batch(5, torch.float32)
        scores = sim_enc(images, captions, lengths)
        ids = range(5 * step, 5 * step + 5)
        criterion(scores, (images, captions, lengths), ids=list(ids)).backward()
    assert sim_enc.out.weight.grad.isfinite().all()
    assert len(criterion.image_bank) == 15


def test_imram_bank_scores_its_model_with_images_in_rows() -> None:
    """The host's model puts captions in rows while it trains; loss and bank agree with SGRAF's."""

    class Model(nn.Module):
        def forward_score(
            self, img_fc: Tensor, img_emb: Tensor, ht: Tensor, cap_emb: Tensor, cap_len: list[int]
        ) -> Tensor:
            scores = published.scan_scores(img_emb, cap_emb, cap_len, options()).double()
            return scores.t() if self.training else scores

    model = Model()
    settings = {"bank_size": 9, "dim": 16, "regions": 6, "bank_dtype": torch.float64}
    score = imram.bank_score(model)
    ours = imram.ContrastiveLoss(options(), 0.2, score=score, **settings)
    sgraf_twin = sgraf.ContrastiveLoss(0.2, score=score, **settings)
    for _ in range(3):
        images, captions, lengths = batch(5)
        images.requires_grad_()
        fragments = images, captions, lengths
        host_scores = model.forward_score(images.mean(1), images, captions[:, 0], *fragments[1:])
        got = ours(host_scores, fragments, ids=range(5))
        want = sgraf_twin(score(*fragments), fragments, ids=range(5))
        torch.testing.assert_close(got, want)
    model.eval()
    torch.testing.assert_close(score(*fragments), host_scores.t())


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(
            lambda: scan.xattn_score_t2i(*batch(2), options(raw_feature_norm="l3norm")),
            "raw_feature_norm must be one of clipped_l2norm, softmax",
            id="norm",
        ),
        pytest.param(
            lambda: scan.xattn_score_i2t(*batch(2), options(agg_func="Median")),
            "agg_func must be one of",
            id="aggregate",
        ),
        pytest.param(
            lambda: scan.ContrastiveLoss(options(cross_attn="both")), "t2i or i2t", id="direction"
        ),
        pytest.param(
            lambda: scan.ContrastiveLoss(options())(*batch(3), ids=[1, 2]),
            r"ids must be \(3,\)",
            id="ids",
        ),
        pytest.param(
            lambda: scan.ContrastiveLoss(options(), temperature=0.0), "temperature", id="tau"
        ),
        pytest.param(
            lambda: sgraf.ContrastiveLoss(bank_size=4, dim=3), "needs score too", id="no-score"
        ),
        pytest.param(
            lambda: sgraf.ContrastiveLoss()(torch.ones(2, 3)), r"must be \(B, B\)", id="square"
        ),
        pytest.param(
            lambda: sgraf.ContrastiveLoss(score=torch.ones, bank_size=4, dim=3)(torch.ones(2, 2)),
            "needs the images, captions and lengths",
            id="no-fragments",
        ),
        pytest.param(
            lambda: scan.ContrastiveLoss(options(), bank_size=4)(
                batch(2, torch.float32)[0].requires_grad_(), *batch(2, torch.float32)[1:]
            ),
            "pass regions=6",
            id="regions",
        ),
        pytest.param(
            lambda: scan.i2t(None, None, None, np.ones((3, 7))),
            r"\(N images, m N captions\)",
            id="sims",
        ),
    ],
)
def test_wrong_use_gets_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
