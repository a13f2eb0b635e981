"""pytorch-metric-learning's own trainer with the weighted loss and a memory that is saved."""

import torch
from pytorch_metric_learning.samplers import MPerClassSampler
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn

from sede_kernels.integrations.metric_learning import CrossBatchMemory, WeightedNTXentLoss


def report(trainer: MetricLossOnly) -> None:
    """A line every fourth step."""
    if trainer.iteration % 4 == 3:
        loss = trainer.losses["total_loss"].item()
        filled = trainer.loss_funcs["metric_loss"].has_been_filled
        print(f"epoch {trainer.epoch}  loss {loss:.4f}  memory filled: {filled}")


def main() -> None:
    """Eight noisy classes, a linear trunk, a checkpoint of the memory."""
    torch.manual_seed(0)
    labels = torch.arange(256) % 8
    points = torch.randn(8, 16)[labels] + 0.7 * torch.randn(256, 16)
    data = [(point, int(label)) for point, label in zip(points, labels, strict=True)]
    trunk = nn.Linear(16, 8)
    loss = CrossBatchMemory(
        WeightedNTXentLoss(temperature=0.1, hardness=2.0), embedding_size=8, memory_size=128
    )
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.Adam(trunk.parameters(), lr=1e-2)},
        batch_size=32,
        loss_funcs={"metric_loss": loss},
        dataset=data,
        sampler=MPerClassSampler(labels, m=4, length_before_new_iter=256),
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=report,
    )
    trainer.train(num_epochs=3)
    resumed = CrossBatchMemory(WeightedNTXentLoss(0.1, 2.0), embedding_size=8, memory_size=128)
    resumed.load_state_dict(loss.state_dict())
    print("resumed at", resumed.queue_idx, "filled:", resumed.has_been_filled)


if __name__ == "__main__":
    main()
