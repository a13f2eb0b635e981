"""A MoCo-style loop with lightly's projection head and the NT-Xent twin."""

import copy

import torch
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn

from sede_kernels.integrations.lightly import NTXentLoss


def main() -> None:
    """Two noisy views of made-up points; the bank wraps at a batch that does not divide it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), MoCoProjectionHead(32, 32, 8))
    slow = copy.deepcopy(model)
    deactivate_requires_grad(slow)
    criterion = NTXentLoss(temperature=0.1, memory_bank_size=(100, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    points = torch.randn(96, 16)
    for step in range(24):
        rows = torch.randperm(96)[:24]
        update_momentum(model, slow, m=0.99)
        query = model(points[rows] + 0.1 * torch.randn(24, 16))
        key = slow(points[rows] + 0.1 * torch.randn(24, 16))
        loss = criterion(query, key, ids=rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 6 == 5:
            print(f"step {step}  loss {loss.item():.4f}  stored {len(criterion.memory_bank)}")
    print("saved:", ", ".join(criterion.state_dict()))


if __name__ == "__main__":
    main()
