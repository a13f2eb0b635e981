"""The sentence-transformers twin against the real loss and on a real, locally built model."""

import copy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sede_kernels.integrations.sentence_transformers import (
    DIRECTIONS,
    MultipleNegativesRankingLoss,
)
from tests.conftest import unit
from tests.integrations.conftest import part_of_sentence_transformers, preprocess

WORDS = [f"word{i}" for i in range(30)]


def columns(count: int = 3, grad: bool = True) -> list[Tensor]:
    return [unit(6, 16).mul(2.0).requires_grad_(grad) for _ in range(count)]


@pytest.fixture
def host(sentence_transformers: ModuleType) -> ModuleType:
    return part_of_sentence_transformers("sentence_transformer.losses", "losses")


def assert_same(host: ModuleType, documents: int, **settings: object) -> None:
    """Both losses from the same positional and keyword arguments, on the same embeddings."""
    real = host.MultipleNegativesRankingLoss(nn.Identity(), 10.0, **settings)
    ours = MultipleNegativesRankingLoss(nn.Identity(), 10.0, **settings, bank_size=32, dim=16)
    inputs = columns(1 + documents)
    want, got = (loss.compute_loss_from_embeddings(inputs, None) for loss in (real, ours))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))


@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
@pytest.mark.parametrize("documents", [1, 3], ids=["pairs", "negatives"])
@pytest.mark.parametrize(
    "mode", [None, "in_batch_negatives", "hard_negatives", "all_negatives"], ids=str
)
def test_equals_the_real_loss_while_the_bank_is_empty(
    sentence_transformers: ModuleType,
    host: ModuleType,
    mode: str | None,
    documents: int,
    similarity: str,
) -> None:
    assert_same(
        host,
        documents,
        similarity_fct=getattr(sentence_transformers.util, similarity),
        hardness_mode=mode,
        hardness_strength=4.0 if mode else 0.0,
    )


@pytest.mark.parametrize("documents", [1, 2], ids=["pairs", "negatives"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"directions": DIRECTIONS}, id="all"),
        pytest.param({"directions": ("doc_to_doc", "query_to_doc")}, id="documents"),
        pytest.param(
            {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
            id="per-direction",
        ),
        pytest.param(
            {
                "directions": DIRECTIONS,
                "hardness_mode": "all_negatives",
                "hardness_strength": 4.0,
            },
            id="hardness",
        ),
    ],
)
def test_equals_the_real_loss_in_every_direction(
    host: ModuleType, settings: dict[str, object], documents: int
) -> None:
    assert_same(host, documents, **settings)


def test_settings_of_the_model_card_are_the_host_s(host: ModuleType) -> None:
    ours = MultipleNegativesRankingLoss(nn.Identity(), 10.0).get_config_dict()
    assert ours.pop("bank_size") == 0
    assert ours == host.MultipleNegativesRankingLoss(nn.Identity(), 10.0).get_config_dict()


@pytest.mark.parametrize("mode", [None, "in_batch_negatives", "hard_negatives", "all_negatives"])
def test_bank_documents_count_as_in_batch_negatives(mode: str | None) -> None:
    strength = 3.0 if mode else 0.0
    ours = MultipleNegativesRankingLoss(
        nn.Identity(),
        hardness_mode=mode,
        hardness_strength=strength,
        bank_size=6,
        dim=16,
        bank_dtype=torch.float64,
    )
    old = columns(2)
    ours.compute_loss_from_embeddings(old)
    inputs = columns(2)
    got = ours.compute_loss_from_embeddings(inputs)
    query, document = (nn.functional.normalize(c, dim=1) for c in inputs)
    stored = nn.functional.normalize(old[1].detach(), dim=1)
    cosine = query @ torch.cat([document, stored]).T
    weighted = torch.ones_like(cosine)
    weighted[:, :6].fill_diagonal_(0.0)
    if mode in (None, "hard_negatives"):
        weighted.zero_()
    logits = 20.0 * cosine + strength * cosine.detach() * weighted
    want = nn.functional.cross_entropy(logits, torch.arange(6))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))


def test_labels_as_ids_hide_false_negatives_in_batch_and_bank() -> None:
    ours = MultipleNegativesRankingLoss(
        nn.Identity(), bank_size=6, dim=16, bank_dtype=torch.float64, ids_in_labels=True
    )
    old, inputs = columns(2), columns(3)
    ours.compute_loss_from_embeddings(old, torch.arange(6))
    ids = torch.tensor([0, 7, 7, 3, 8, 9])
    got = ours.compute_loss_from_embeddings(inputs, ids)
    query, document, hard, stored = (
        nn.functional.normalize(c.detach(), dim=1) for c in (*inputs, old[1])
    )
    logits = 20.0 * query @ torch.cat([document, hard, stored]).T
    same = ids.unsqueeze(1) == torch.cat([ids, ids, torch.arange(6)])
    own = torch.eye(6, dtype=torch.bool)
    same &= ~torch.cat([own, own, torch.zeros_like(own)], 1)  # a row's own documents stay
    want = nn.functional.cross_entropy(logits.masked_fill(same, -torch.inf), torch.arange(6))
    torch.testing.assert_close(got.detach(), want)


def real_model(host: ModuleType, folder: Path, layers: int = 1) -> nn.Module:
    """A SentenceTransformer of one tiny BERT layer with random weights and a local vocabulary."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    modules = part_of_sentence_transformers("sentence_transformer.modules", "models")
    transformers = part_of_sentence_transformers("base.modules", "models")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    transformer = transformers.Transformer(str(folder), max_seq_length=8)
    return host.SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu")


def test_real_model_trains_stores_and_resumes(
    sentence_transformers: ModuleType, tmp_path: Path
) -> None:
    def build() -> tuple[nn.Module, MultipleNegativesRankingLoss, torch.optim.Optimizer]:
        model = real_model(sentence_transformers, tmp_path)
        loss = MultipleNegativesRankingLoss(
            model, bank_size=10, hardness_mode="in_batch_negatives", hardness_strength=2.0
        )
        return model, loss, torch.optim.AdamW(model.parameters(), lr=5e-3)

    def step(model: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer, k: int) -> float:
        anchors = [f"{WORDS[(i + k) % 30]} {WORDS[i]}" for i in range(4)]
        positives = [f"{WORDS[i]} {WORDS[(i + k) % 30]}" for i in range(4)]
        model.train()
        value = loss([preprocess(model)(anchors), preprocess(model)(positives)], torch.empty(0))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.item()

    parts = build()
    losses = [step(*parts, k) for k in range(6)]
    assert losses[-1] != losses[0]
    assert len(parts[1].bank) == 10
    model, loss, optimizer = (copy.deepcopy(p.state_dict()) for p in parts)
    bank = copy.deepcopy(parts[1].bank_state())
    assert all(not key.startswith("model.") for key in bank)
    assert {key for key in loss if not key.startswith("model.")} == set(bank)
    straight = [step(*parts, k) for k in (7, 8)]
    resumed = build()
    resumed[0].load_state_dict(model)
    resumed[1].load_bank_state(bank)
    old = {key: value for key, value in bank.items() if key != "bank.rejected"}
    old["_extra_state"] = int(old.pop("steps"))
    resumed[1].load_bank_state(old)  # as version 0.1.0 saved it
    resumed[2].load_state_dict(optimizer)
    assert [step(*resumed, k) for k in (7, 8)] == straight
    with torch.no_grad():  # the trainer's evaluation
        before = resumed[1].bank.rows.clone()
        resumed[1]([preprocess(parts[0])(["word1"])] * 2, torch.empty(0))
    assert torch.equal(before, resumed[1].bank.rows)


def test_gradient_accumulation_stores_every_part() -> None:
    ours = MultipleNegativesRankingLoss(nn.Identity(), bank_size=32, dim=16, start_step=2)
    for _ in range(3):
        (ours.compute_loss_from_embeddings(columns(2)) / 3).backward()
    assert (len(ours.bank), ours.steps, ours.warm) == (18, 3, True)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(lambda: build_loss(scale=0.0), "scale must be > 0", id="scale"),
        pytest.param(
            lambda: build_loss(similarity_fct="manhattan"), "function of two", id="similarity"
        ),
        pytest.param(
            lambda: build_loss(directions=("doc_to_doc",)), "the first among them", id="directions"
        ),
        pytest.param(
            lambda: build_loss(directions=DIRECTIONS, partition_mode="per_direction"),
            "without query_to_query",
            id="partition",
        ),
        pytest.param(lambda: build_loss(hardness_mode="all"), "hardness_mode", id="mode"),
        pytest.param(lambda: build_loss(hardness_strength=-1.0), "hardness_strength", id="beta"),
        pytest.param(lambda: build_loss(bank_size=4), "pass dim", id="dim"),
        pytest.param(
            lambda: build_loss().compute_loss_from_embeddings(columns(1)), "got 1 column", id="one"
        ),
        pytest.param(
            lambda: build_loss(ids_in_labels=True).compute_loss_from_embeddings(columns(2)),
            "there is none",
            id="labels",
        ),
        pytest.param(
            lambda: build_loss(bank_size=4, dim=16).load_bank_state({}), "same bank", id="state"
        ),
        pytest.param(
            lambda: build_loss(sharded=True), "sharded=True needs a bank", id="sharded-no-bank"
        ),
        pytest.param(
            lambda: build_loss(
                sharded=True, bank_size=4, dim=16, similarity_fct=lambda a, b: a @ b.T
            ),
            "sharded=True needs a bank and util.cos_sim or util.dot_score",
            id="sharded-own-similarity",
        ),
    ],
)
def test_wrong_use_gets_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def build_loss(**settings: object) -> MultipleNegativesRankingLoss:
    return MultipleNegativesRankingLoss(nn.Identity(), **settings)


def test_trains_inside_the_host_s_own_loop(
    sentence_transformers: ModuleType, tmp_path: Path
) -> None:
    """``old_fit`` collates ``InputExample`` labels as the trainer does its label column."""
    model = real_model(sentence_transformers, tmp_path)
    loss = MultipleNegativesRankingLoss(model, bank_size=100, ids_in_labels=True)
    example = part_of_sentence_transformers("sentence_transformer.readers", "readers").InputExample
    data = [
        example(texts=[f"{WORDS[i]} {WORDS[(3 * i) % 30]}", WORDS[i]], label=i) for i in range(30)
    ]
    before = copy.deepcopy(model.state_dict())
    loader = torch.utils.data.DataLoader(data, batch_size=8)
    model.old_fit([(loader, loss)], epochs=2, warmup_steps=0, show_progress_bar=False)
    assert loss.bank.ids[:60].tolist() == 2 * list(range(30))  # ragged last batch included
    assert any(not torch.equal(before[key], value) for key, value in model.state_dict().items())
