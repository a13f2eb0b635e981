"""A first run with banks: learnable temperature, ids as lists, and what to watch in TensorBoard.

python examples/first_hour.py [FOLDER OF THE CURVES]
"""

import sys
import tempfile

import torch
from torch import nn
from torch.nn.functional import normalize

import sede_kernels as sede


class TwoTowers(nn.Module):
    """Two linear encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(64, 32), nn.Linear(64, 32)

    def forward(
        self, images: torch.Tensor, texts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit embeddings."""
        return normalize(self.image(images), dim=1), normalize(self.text(texts), dim=1)


def main() -> None:
    """Pairs of 40 things, in which a text is a noisy view of its image."""
    from torch.utils.tensorboard import SummaryWriter

    folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="first-hour-")
    torch.manual_seed(0)
    model = TwoTowers()
    criterion = sede.SEDELoss(512, 32, temperature=0.1, hardness=5.0, learn_temperature=True)
    optimizer = torch.optim.AdamW(
        [{"params": model.parameters()}, criterion.parameter_group()], lr=1e-3, weight_decay=0.05
    )
    writer = SummaryWriter(folder)
    monitor = sede.BankMonitor(writer, criterion, every=10)
    things = torch.randn(400, 64)
    for step in range(120):
        ids = torch.randint(0, 400, (32,)).tolist()
        images = things[ids] + 0.2 * torch.randn(32, 64)
        texts = things[ids].flip(1) + 0.2 * torch.randn(32, 64)
        image, text = model(images, texts)
        keys = image.detach(), text.detach()
        loss, stats = criterion(image, text, *keys, ids=ids, return_stats=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor(step, loss, stats, image=image, text=text, ids=ids)
        criterion.enqueue(*keys, ids=ids)
        if step % 30 == 0:
            first = (stats[0].positive > stats[0].hardest).float().mean()
            print(f"step {step}  loss {loss.item():.3f}  first {first:.0%}")
    writer.close()
    print(f"curves: tensorboard --logdir {folder}")


if __name__ == "__main__":
    main()
