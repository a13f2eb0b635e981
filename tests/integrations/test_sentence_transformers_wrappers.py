"""The twin inside the host's wrappers and its cached form: each step meets the bank as it was."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sede_kernels.distributed import Batches
from sede_kernels.integrations import sentence_transformers as twins
from sede_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
from tests.conftest import unit
from tests.integrations.conftest import part_of_sentence_transformers, preprocess
from tests.integrations.test_sentence_transformers import WORDS, real_model

SIZE, ROWS, DIM = 11, 5, 16


class Encoder(nn.Module):
    """What MatryoshkaLoss needs of a model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(6, DIM, dtype=torch.float64)

    def get_embedding_dimension(self) -> int:
        return DIM

    get_sentence_embedding_dimension = get_embedding_dimension  # its name before 5.4

    def __getitem__(self, index: int) -> nn.Module:
        return self.linear

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.linear(features["x"])}


@pytest.fixture
def host(sentence_transformers: ModuleType) -> ModuleType:
    return part_of_sentence_transformers("sentence_transformer.losses", "losses")


@pytest.fixture
def cached(host: ModuleType) -> ModuleType:
    try:
        importlib.import_module("sentence_transformers.base.losses.gradcache")
    except ModuleNotFoundError:
        pytest.skip("the host's cached losses have another base before version 6.2")
    return importlib.import_module("sede_kernels.integrations.sentence_transformers_cached")


def batches(steps: int, columns: int = 2) -> list[list[dict[str, Tensor]]]:
    torch.manual_seed(2)
    shape = (ROWS, 6)
    return [
        [{"x": torch.randn(*shape, dtype=torch.float64)} for _ in range(columns)]
        for _ in range(steps)
    ]


def plain(query: Tensor, documents: list[Tensor], stored: list[Tensor], scale: float) -> Tensor:
    """Cross entropy over the documents of the batch and the stored ones."""
    logits = scale * query @ torch.cat([*documents, *stored]).T
    return F.cross_entropy(logits, torch.arange(len(query)))


def cut(rows: Tensor, width: int) -> Tensor:
    return F.normalize(rows[:, :width], dim=1)


def ring(rows: Tensor) -> list[Tensor]:
    """What a bank of ``SIZE`` holds after these rows."""
    return [rows[-SIZE:]] if len(rows) else []


@pytest.mark.parametrize("kind", ["plain", "cached"])
@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
def test_matryoshka_sees_one_cut_of_the_bank_per_width(
    host: ModuleType,
    cached: ModuleType,
    sentence_transformers: ModuleType,
    kind: str,
    similarity: str,
) -> None:
    """Five steps, so that the ring wraps: value, gradient and contents of every step."""
    model = Encoder()
    options = {
        "similarity_fct": getattr(sentence_transformers.util, similarity),
        "bank_size": SIZE,
        "bank_dtype": torch.float64,
        "scale": 3.0,
    }
    if kind == "plain":
        inner = MultipleNegativesRankingLoss(model, **options)
    else:
        inner = cached.CachedMultipleNegativesRankingLoss(model, mini_batch_size=2, **options)
    loss = host.MatryoshkaLoss(model, inner, [4, 16, 8], [0.5, 1.0, 2.0])
    past = torch.zeros(0, DIM, dtype=torch.float64)
    for features in batches(5):
        embeddings = [model.linear(column["x"]) for column in features]
        want = sum(
            weight
            * plain(
                cut(embeddings[0], width),
                [cut(embeddings[1], width)],
                [cut(rows, width) for rows in ring(past)],
                3.0,
            )
            for width, weight in ((16, 1.0), (8, 2.0), (4, 0.5))
        )
        expected = torch.autograd.grad(want, model.linear.weight)[0]
        got = loss(features, torch.empty(0))
        model.zero_grad()
        got.backward()
        torch.testing.assert_close(got.detach(), want.detach())
        torch.testing.assert_close(model.linear.weight.grad, expected)
        past = torch.cat([past, F.normalize(embeddings[1].detach(), dim=1)])
        order = (torch.arange(SIZE) + len(past) - min(len(past), SIZE)) % SIZE
        held = inner.bank.rows[order[: min(len(past), SIZE)]]
        torch.testing.assert_close(held, past[-SIZE:])


def test_matryoshka_with_ids_and_warm_up(host: ModuleType) -> None:
    """Ids hide a stored row at every width; the warm-up ends for all widths of a step together."""
    model = Encoder()
    inner = MultipleNegativesRankingLoss(
        model, bank_size=SIZE, bank_dtype=torch.float64, ids_in_labels=True, start_step=1
    )
    loss = host.MatryoshkaLoss(model, inner, [16, 4])
    first, second = batches(2)
    ids = torch.arange(ROWS)
    for features, stored in ((first, False), (second, True)):
        query, document = (model.linear(column["x"]) for column in features)
        want = torch.zeros((), dtype=torch.float64)
        for width in (16, 4):
            keys = [cut(document, width)]
            if stored:
                keys.append(cut(model.linear(first[1]["x"]), width))
            logits = 20.0 * cut(query, width) @ torch.cat(keys).T
            same = (ids.unsqueeze(1) == ids.repeat(len(keys))).clone()
            same[:, :ROWS] = False
            want = want + F.cross_entropy(logits.masked_fill(same, -torch.inf), ids)
        torch.testing.assert_close(loss(features, ids), want)
    assert int(inner.steps) == 2 and len(inner.bank) == 2 * ROWS


def test_adaptive_layers_store_the_last_layer_alone(
    host: ModuleType, sentence_transformers: ModuleType, tmp_path: Path
) -> None:
    model = real_model(sentence_transformers, tmp_path, layers=3)
    inner = MultipleNegativesRankingLoss(model, bank_size=SIZE, scale=3.0)
    loss = host.AdaptiveLayerLoss(model, inner, n_layers_per_step=-1, kl_temperature=0)
    alike = "layer_weighting" in inspect.signature(host.AdaptiveLayerLoss).parameters

    def layers(texts: list[str]) -> list[Tensor]:
        tokens = preprocess(model)(texts)
        bert = model[0].auto_model
        hidden = bert(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            output_hidden_states=True,
        ).hidden_states
        return [F.normalize(state.mean(dim=1), dim=1) for state in hidden]

    past = torch.zeros(0, 16)
    for k in range(4):
        anchors = [f"{WORDS[(i + k) % 30]} {WORDS[i]}" for i in range(ROWS)]
        positives = [f"{WORDS[i]} {WORDS[(i + 2 * k) % 30]}" for i in range(ROWS)]
        query, document = layers(anchors), layers(positives)
        losses = [plain(q, [d], ring(past), 3.0) for q, d in zip(query, document, strict=True)]
        weights = [1 if alike else 1 / (1 + layer) for layer in range(len(losses) - 1)]
        earlier = sum(w * one for w, one in zip(weights, losses[:-1], strict=True))
        want = losses[-1] + earlier / len(weights)
        got = loss([preprocess(model)(anchors), preprocess(model)(positives)], torch.empty(0))
        torch.testing.assert_close(got, want)
        past = torch.cat([past, document[-1].detach()])
        assert len(inner.bank) == min(len(past), SIZE)


@pytest.mark.parametrize("columns", [2, 4], ids=["pairs", "negatives"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
        {"hardness_mode": "all_negatives", "hardness_strength": 4.0},
    ],
    ids=["default", "symmetric", "hardness"],
)
def test_cached_loss_equals_the_host_s_and_the_whole_batch_s(
    host: ModuleType, cached: ModuleType, settings: dict[str, object], columns: int
) -> None:
    features = batches(1, columns)[0]

    def run(build: Callable[..., nn.Module], **more: object) -> tuple[Tensor, Tensor]:
        model = Encoder()
        value = build(model, **settings, **more)(features, torch.empty(0))
        value.backward()
        return value.detach(), model.linear.weight.grad

    want = run(host.CachedMultipleNegativesRankingLoss, mini_batch_size=2)
    got = run(cached.CachedMultipleNegativesRankingLoss, mini_batch_size=2)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        run(cached.CachedMultipleNegativesRankingLoss, mini_batch_size=2, bank_size=SIZE),
        run(MultipleNegativesRankingLoss, bank_size=SIZE),
    )


def test_cached_loss_fills_and_reads_its_bank_as_the_plain_one(cached: ModuleType) -> None:
    models = Encoder(), Encoder()
    bank = {"bank_size": SIZE, "bank_dtype": torch.float64, "ids_in_labels": True}
    whole = MultipleNegativesRankingLoss(models[0], **bank)
    parts = cached.CachedMultipleNegativesRankingLoss(models[1], mini_batch_size=2, **bank)
    for number, features in enumerate(batches(4)):
        ids = torch.arange(ROWS) + number
        values = []
        for model, loss in zip(models, (whole, parts), strict=True):
            model.zero_grad()
            values.append(loss(features, ids))
            values[-1].backward()
        torch.testing.assert_close(values[1], values[0])
        torch.testing.assert_close(models[1].linear.weight.grad, models[0].linear.weight.grad)
    torch.testing.assert_close(parts.bank.rows, whole.bank.rows)
    assert torch.equal(parts.bank.ids, whole.bank.ids)
    with torch.no_grad():
        before = parts.bank.rows.clone()
        torch.testing.assert_close(parts(features, ids), whole(features, ids))
        assert torch.equal(parts.bank.rows, before)


def test_the_cached_loss_names_its_settings_as_the_host(
    host: ModuleType, cached: ModuleType
) -> None:
    """What the model card shows."""
    settings = {"scale": 42.0, "mini_batch_size": 4, "partition_mode": "per_direction"}
    want, got = (
        module.CachedMultipleNegativesRankingLoss(Encoder(), **settings).get_config_dict()
        for module in (host, cached)
    )
    assert got.pop("bank_size") == 0
    assert got == want


def manhattan(left: Tensor, right: Tensor) -> Tensor:
    """A similarity that is no product."""
    return -torch.cdist(left, right, p=1)


def test_a_similarity_of_the_user_s_own(host: ModuleType) -> None:
    columns = [unit(6, 8).mul(2.0).requires_grad_() for _ in range(3)]
    settings = {"scale": 2.0, "directions": ("query_to_doc", "doc_to_query")}
    real = host.MultipleNegativesRankingLoss(nn.Identity(), similarity_fct=manhattan, **settings)
    ours = MultipleNegativesRankingLoss(
        nn.Identity(),
        similarity_fct=manhattan,
        bank_size=8,
        dim=8,
        bank_dtype=torch.float64,
        **settings,
    )
    want, got = (loss.compute_loss_from_embeddings(columns, None) for loss in (real, ours))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, columns), torch.autograd.grad(want, columns)
    )
    query, positive, hard = columns
    logits = torch.cat(
        [manhattan(query, torch.cat([positive, hard, positive.detach()])),
         manhattan(query, positive).T], dim=1
    )  # fmt: skip
    again = ours.compute_loss_from_embeddings(columns)
    torch.testing.assert_close(again, F.cross_entropy(2.0 * logits, torch.arange(6)))
    assert ours.get_config_dict()["similarity_fct"] == "manhattan"


class Cosine(nn.Module):
    """A similarity that is a module."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return F.cosine_similarity(left[:, None], right[None], dim=2)


def test_a_similarity_that_is_assigned_later_is_the_one_computed(host: ModuleType) -> None:
    columns = [unit(6, 8).mul(2.0), unit(6, 8)]

    def twin(similarity_fct: object = None, **settings: object) -> MultipleNegativesRankingLoss:
        return MultipleNegativesRankingLoss(
            nn.Identity(), 2.0, similarity_fct=similarity_fct, dim=8, **settings
        )

    loss = twin()
    values = []
    for chosen in (manhattan, Cosine(), None):
        loss.similarity_fct = chosen
        values.append(loss.compute_loss_from_embeddings(columns))
        torch.testing.assert_close(values[-1], twin(chosen).compute_loss_from_embeddings(columns))
    assert values[0] != pytest.approx(values[1].item(), rel=0.1)
    torch.testing.assert_close(values[1], values[2])
    for wrong in (twin(), twin(bank_size=4, sharded=True)):
        wrong.similarity_fct = manhattan if wrong.sharded else "manhattan"
        with pytest.raises(ValueError, match="dot_score"):
            wrong.compute_loss_from_embeddings(columns)


def test_the_cached_loss_on_the_second_of_two_ranks(
    cached: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks with one batch: the mean over a rank's rows is that over the doubled batch."""

    class Doubled(Batches):
        def gather(self, rows: Tensor) -> Tensor:
            return torch.cat([rows, rows])

    settings = {
        "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        "hardness_mode": "all_negatives",
        "hardness_strength": 5.0,
    }
    columns = [[unit(4, 8)] for _ in range(3)]
    kind, model = cached.CachedMultipleNegativesRankingLoss, nn.Identity()
    doubled = [[torch.cat(column * 2)] for column in columns]
    want = kind(model, **settings, mini_batch_size=3).calculate_loss(doubled)
    monkeypatch.setattr(
        twins, "batches", lambda rows, ids, name: Doubled([len(rows)] * 2, 1, None, True)
    )
    for size in (2, 3, 4):
        rank = kind(model, **settings, mini_batch_size=size, gather_across_devices=True)
        torch.testing.assert_close(rank.calculate_loss(columns), want)


def test_like_columns_share_a_forward_as_in_the_host(
    host: ModuleType, sentence_transformers: ModuleType, tmp_path: Path
) -> None:
    """The anchor by itself, both candidate columns together, in versions that merge columns."""
    model = real_model(sentence_transformers, tmp_path)
    sizes = []
    hook = model[0].register_forward_pre_hook(
        lambda module, inputs: sizes.append(len(inputs[0]["input_ids"]))
    )
    texts = [[f"{WORDS[i + k]} {WORDS[i]}" for i in range(4)] for k in range(3)]
    values = []
    for kind in (host.MultipleNegativesRankingLoss, MultipleNegativesRankingLoss):
        values.append(kind(model)([preprocess(model)(column) for column in texts], torch.empty(0)))
    hook.remove()
    assert sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]
    merges = importlib.util.find_spec("sentence_transformers.base") is not None
    assert sizes == ([4, 8, 4, 8] if merges else [4] * 6)
    torch.testing.assert_close(values[1], values[0])


def test_temperature_and_citation_are_there(host: ModuleType) -> None:
    real = host.MultipleNegativesRankingLoss(nn.Identity(), 25.0)
    ours = MultipleNegativesRankingLoss(nn.Identity(), 25.0, bank_size=2, dim=4)
    assert ours.temperature == real.temperature == 0.04
    assert "1807.03748" in ours.citation and "1911.05722" in ours.citation
