"""A real SentenceTransformer from a local config, with past documents as further negatives."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast

from sede_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss

WORDS = [f"word{i}" for i in range(60)]


def build(folder: Path) -> SentenceTransformer:
    """One small BERT layer pair with random weights and a vocabulary of our own."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=12)
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def main() -> None:
    """Sentences of the same words in another order are pairs; the label is the pair's id."""
    torch.manual_seed(0)
    random.seed(0)
    pairs = [random.sample(WORDS, 5) for _ in range(64)]
    with TemporaryDirectory() as folder:
        model = build(Path(folder))
    loss = MultipleNegativesRankingLoss(
        model,
        bank_size=128,
        hardness_mode="in_batch_negatives",
        hardness_strength=3.0,
        ids_in_labels=True,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in range(12):
        rows = random.sample(range(64), 16)
        anchors = [" ".join(pairs[i]) for i in rows]
        positives = [" ".join(random.sample(pairs[i], 5)) for i in rows]
        features = [model.preprocess(anchors), model.preprocess(positives)]
        value = loss(features, torch.tensor(rows))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 4 == 3:
            print(f"step {step}  loss {value.item():.4f}  stored {len(loss.bank)}")
    print("saved beside the model:", ", ".join(loss.bank_state()))


if __name__ == "__main__":
    main()
