"""What a trained model attends to and what negatives it meets: the why behind a table."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sede_kernels.training.config import TrainConfig
from sede_kernels.training.data.precomp import Ints, Part
from sede_kernels.training.data.text import pad
from sede_kernels.training.models import Bfan, Encoded, Erasing, RetrievalModel, Scan
from sede_kernels.training.run import Corpus

PAIRS = 500  # looked at, at most
MANY = 1024  # further images: the same for every variant, so that their figures compare


def pair_attention(
    model: RetrievalModel, images: Encoded, captions: Encoded
) -> tuple[Tensor, Tensor] | None:
    """Attention over regions of B right pairs, before erasing.

    Returns:
        (B, Q, R) attention and (B, Q) bool, which of its rows are real. An image encoder's own
        attention is one row an image. Else models that compare fragments have a row a word,
        ``softmax_r(lambda x)`` of the clipped and normalised similarity (text to image). None: no
        attention over regions (scan i2t).
    """
    if images.attention is not None:
        attention = images.attention[:, None]
        return attention, torch.ones_like(attention[..., 0], dtype=torch.bool)
    smoothing = word_smoothing(model)
    if smoothing is None:
        return None
    words, lengths = captions.fragments, captions.lengths
    real = torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
    if lengths is not None:
        real = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
    scores = F.leaky_relu(words @ images.fragments.mT, 0.1)  # [B, L, R]
    scores = scores.masked_fill(~real[:, :, None], 0.0)
    scores = scores / (scores.norm(dim=1, keepdim=True) + 1e-8)
    return (smoothing * scores).softmax(2), real


def word_smoothing(model: RetrievalModel) -> float | None:
    """Inverse temperature of the attention of words over regions; None: there is none."""
    if isinstance(model, Scan):
        return model.directions.get("t2i")
    return model.smoothing if isinstance(model, Bfan) else None


def erase_rows(attention: Tensor, erasing: Erasing) -> Tensor:
    """(B, Q, R) attention without the erased regions, row by row."""
    return erasing(attention.flatten(0, 1), None).view_as(attention)


def entropy(attention: Tensor) -> Tensor:
    """Entropy in nats over the last axis; 36 equal regions have log 36 = 3.58."""
    entropies: Tensor = torch.special.entr(attention).sum(-1)
    return entropies


@torch.no_grad()
def encode_pairs(
    model: RetrievalModel, part: Part, words: list[list[int]], captions: Ints
) -> tuple[Encoded, Encoded]:
    """Some captions of a part and their images, row for row."""
    device = next(model.parameters()).device
    numbers, lengths = pad([words[c] for c in captions.tolist()])
    sentences = part.sentence_rows(captions)
    sentences = None if sentences is None else sentences.to(device)
    regions = part.regions(part.image_of[captions]).to(device)
    return (
        model.image_encoder(regions),
        model.text_encoder(numbers.to(device), lengths.to(device), sentences),
    )


@torch.no_grad()
def attention_facts(
    model: RetrievalModel, part: Part, words: list[list[int]]
) -> dict[str, float] | None:
    """Mean entropy of the attention over regions on right pairs, before and after erasing.

    Returns:
        ``entropy``; with erasing also ``entropy_after``, and the shares of ``regions_kept`` and
        ``attention_kept``. None for a model without attention over regions.
    """
    captions = np.arange(min(PAIRS, len(part.captions)))
    found = pair_attention(model, *encode_pairs(model, part, words, captions))
    if found is None:
        return None
    attention, real = found
    facts = {"entropy": float(entropy(attention)[real].mean())}
    if model.erasing is not None:
        after = erase_rows(attention, model.erasing)
        kept = after > 0
        facts["entropy_after"] = float(entropy(after)[real].mean())
        facts["regions_kept"] = float(kept.float().mean(2)[real].mean())
        facts["attention_kept"] = float((attention * kept).sum(2)[real].mean())
    return facts


@torch.no_grad()
def negative_facts(
    model: RetrievalModel, part: Part, words: list[list[int]], *, batch: int, many: int = MANY
) -> dict[str, float]:
    """How similar the hardest negative of a training caption is, in its batch and among many.

    One model encodes all, so that only the number of negatives differs; ids mask both.

    Args:
        model: in evaluation mode.
        part: training images and captions.
        words: numbers of its captions' words.
        batch: captions in each batch.
        many: further images beside the batch's, as a full bank would bring them.

    Returns:
        Means over captions: ``positive`` similarity, ``hardest_in_batch``, ``hardest_of_many``
        (batch and others), and the share of captions that a negative beats (``batch_beats``,
        ``many_beat``).
    """
    count = min(max(batch, PAIRS // batch * batch), len(part.captions))
    order = np.random.default_rng(0).permutation(len(part.captions))[: count + many]
    blocks = [order[i : i + 256] for i in range(0, len(order), 256)]
    asked = encode_pairs(model, part, words, order[:count])[1]
    scores = torch.cat(
        [model.score(encode_pairs(model, part, words, block)[0], asked) for block in blocks]
    )
    scores = scores.t().cpu()  # [captions, images]
    ids = part.image_ids[part.image_of[order]]
    positive = scores[:, :count].diagonal()
    wrong = ids[:count, None] != ids
    group = torch.arange(count) // batch
    others = torch.zeros_like(wrong)
    others[:, :count] = group[:, None] == group
    facts = {"positive": float(positive.mean())}
    among_many = wrong & _with_others(others, count)
    for where, beat, mask in (
        ("hardest_in_batch", "batch_beats", others & wrong),
        ("hardest_of_many", "many_beat", among_many),
    ):
        hardest = scores.masked_fill(~mask, -math.inf).max(1).values
        some = hardest.isfinite()
        facts[where] = float(hardest[some].mean())
        facts[beat] = float((hardest > positive)[some].float().mean())
    return facts


def _with_others(others: Tensor, count: int) -> Tensor:
    mask = others.clone()
    mask[:, count:] = True
    return mask


def masked_share(config: TrainConfig, part: Part, epochs: int) -> dict[str, float]:
    """How many bank entries the ids masked, from the order in which training met the captions.

    Returns:
        ``entries`` masked a query on average, and ``queries``, the share with at least one.
    """
    ids = part.image_ids.numpy()[part.image_of]
    size, total, touched, queries = config.batch_size, 0, 0, 0
    bank = np.full(config.bank, -1, np.int64)
    place = 0
    for epoch in range(epochs):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(ids))
        for start in range(0, len(order), size):
            rows = ids[order[start : start + size]]
            same = (rows[:, None] == bank).sum(1)
            total += int(same.sum())
            touched += int((same > 0).sum())
            queries += len(rows)
            kept = rows[-config.bank :]
            bank[(place + np.arange(len(kept))) % config.bank] = kept
            place += len(kept)
    return {"entries": total / queries, "queries": touched / queries}


def analyse(model: RetrievalModel, config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """All facts of a trained run, for its record; test is not looked at."""
    model.eval()
    train, words = corpus.parts["train"], corpus.words["train"]
    facts: dict[str, Any] = {
        "attention": attention_facts(model, corpus.parts["dev"], corpus.words["dev"]),
        "negatives": negative_facts(model, train, words, batch=config.batch_size),
    }
    if config.bank:
        facts["masked"] = masked_share(config, train, config.epochs)
    return facts
