"""The contrastive part of ALBEF and BLIP: queues with ids, soft targets, distillation."""

import torch
from torch import nn

from sede_kernels import MomentumEncoder
from sede_kernels.integrations.albef import RetrievalQueues


def main() -> None:
    """Two projections of made-up features; captions of one image share an id."""
    torch.manual_seed(0)
    heads = nn.ModuleDict({"image": nn.Linear(24, 16), "text": nn.Linear(24, 16)})
    slow = MomentumEncoder(heads, momentum=0.995)
    temp = nn.Parameter(torch.tensor(0.07))
    queues = RetrievalQueues(embed_dim=16, queue_size=100)
    optimizer = torch.optim.AdamW([*heads.parameters(), temp], lr=5e-3)
    truth = torch.randn(40, 24)
    for step in range(20):
        idx = torch.randint(0, 40, (24,))  # repeats: several positives
        image, text = (truth[idx] + 0.3 * torch.randn(24, 24) for _ in range(2))
        with torch.no_grad():
            temp.clamp_(0.001, 0.5)
        slow.update(heads)
        image_feat, text_feat, image_feat_m, text_feat_m = (
            nn.functional.normalize(module[side](data), dim=1)
            for module in (heads, slow.module)
            for side, data in (("image", image), ("text", text))
        )
        alpha = 0.4 * min(1.0, step / 10)
        loss_ita = queues(
            image_feat, text_feat, image_feat_m, text_feat_m, idx, temp=temp, alpha=alpha
        )
        optimizer.zero_grad()
        loss_ita.backward()
        optimizer.step()
        if step % 5 == 4:
            print(f"step {step}  loss_ita {loss_ita.item():.4f}  temp {temp.item():.4f}")
    print("queues:", tuple(queues.image_queue.shape), "ids:", tuple(queues.idx_queue.shape))


if __name__ == "__main__":
    main()
