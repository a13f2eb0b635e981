"""A plain MoCo loop on a queue that any batch size fits."""

import torch
from torch import nn

from sede_kernels import MomentumEncoder
from sede_kernels.integrations.moco import MoCoQueue


def main() -> None:
    """Momentum update, keys, loss, enqueue: the order of a step."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    slow = MomentumEncoder(encoder, momentum=0.99)
    queue = MoCoQueue(dim=8, K=100, T=0.1)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    points = torch.randn(90, 16)
    for step in range(24):
        rows = torch.randperm(90)[:28]  # does not divide the queue
        q = nn.functional.normalize(encoder(points[rows] + 0.1 * torch.randn(28, 16)), dim=1)
        slow.update(encoder)
        k = nn.functional.normalize(slow(points[rows] + 0.1 * torch.randn(28, 16)), dim=1)
        loss = queue(q, k, ids=rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue.dequeue_and_enqueue(k, ids=rows)
        if step % 6 == 5:
            print(f"step {step}  loss {loss.item():.4f}  column {int(queue.queue_ptr)}")


if __name__ == "__main__":
    main()
