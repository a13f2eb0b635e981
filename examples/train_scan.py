"""SCAN's training step with a fragment bank: the host's model class, three lines changed."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from sede_kernels.integrations.scan import ContrastiveLoss, i2t, shard_xattn_t2i, t2i

OPT = SimpleNamespace(
    cross_attn="t2i",
    raw_feature_norm="clipped_l2norm",
    agg_func="LogSumExp",
    lambda_softmax=9.0,
    lambda_lse=6.0,
    embed_size=32,
    margin=0.2,
    max_violation=True,
)


class SCAN:
    """The host's class in outline: precomputed regions, word embeddings, Adam, clipping."""

    def __init__(self, opt: SimpleNamespace) -> None:
        self.img_enc = nn.Linear(64, opt.embed_size)
        self.txt_enc = nn.Embedding(50, opt.embed_size)
        # 1: the bank
        self.criterion = ContrastiveLoss(
            opt=opt, margin=opt.margin, max_violation=opt.max_violation, bank_size=64, regions=12
        )
        self.params = [*self.txt_enc.parameters(), *self.img_enc.parameters()]
        self.optimizer = torch.optim.Adam(self.params, lr=2e-3)

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Encoders, and 2: the bank."""
        return [m.state_dict() for m in (self.img_enc, self.txt_enc, self.criterion)]

    def forward_emb(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Unit regions and words."""
        image = nn.functional.normalize(self.img_enc(images), dim=2)
        return image, nn.functional.normalize(self.txt_enc(words), dim=2)

    def train_emb(self, images: Tensor, words: Tensor, lengths: list[int], ids: list[int]) -> float:
        """One step."""
        im, s = self.forward_emb(images, words)
        self.optimizer.zero_grad()
        # 3: the ids of the images, so that no caption of the same image is a negative
        loss = self.criterion(im, s, lengths, ids=[i // 5 for i in ids])
        loss.backward()
        nn.utils.clip_grad_norm_(self.params, 2.0)
        self.optimizer.step()
        return loss.item()


def main() -> None:
    """Train on 40 made-up images with five captions each, then score them."""
    torch.manual_seed(0)
    topics = torch.randint(0, 50, (40, 6))  # words an image is about
    looks = torch.randn(50, 64)
    regions = looks[topics.repeat(1, 2)] + 0.3 * torch.randn(40, 12, 64)
    captions = torch.stack([topics[i][torch.randperm(6)[:4]] for i in range(40) for _ in range(5)])
    model = SCAN(OPT)
    for epoch in range(6):
        total = 0.0
        for ids in torch.randperm(200).split(24):  # the last batch is ragged
            pairs = ids.tolist()
            batch = regions[ids // 5], captions[ids], [4] * len(pairs), pairs
            total += model.train_emb(*batch)
        print(f"epoch {epoch}  loss {total:8.2f}  stored {len(model.criterion.text_bank)}")
    with torch.no_grad():
        im, s = model.forward_emb(regions, captions)
    sims = shard_xattn_t2i(im.numpy(), s.numpy(), [4] * 200, OPT)
    print("image to text", i2t(im, s, None, sims), " text to image", t2i(im, s, None, sims))
    print("saved:", ", ".join(model.state_dict()[2]))


if __name__ == "__main__":
    main()
