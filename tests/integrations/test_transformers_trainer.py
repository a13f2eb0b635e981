"""The Trainer of transformers: a run with banks is saved and resumed, and equals one in a piece."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.torchvision import load_torchvision
from sede_kernels import SEDELoss

STEPS, SAVED, ROWS = 6, 3, 4


@pytest.fixture(scope="module")
def host() -> Any:
    load_torchvision()
    pytest.importorskip("accelerate", reason="pip install --no-deps accelerate")
    return pytest.importorskip("transformers", reason="pip install transformers")


class Retrieval(nn.Module):
    """Two encoders; the loss and its banks are part of the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.images, self.texts = nn.Linear(6, 8), nn.Linear(6, 8)
        self.criterion = SEDELoss(16, 8, start_step=2, learn_temperature=True)

    def forward(self, image: torch.Tensor, text: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
        a = F.normalize(self.images(image), dim=1)
        b = F.normalize(self.texts(text), dim=1)
        loss = self.criterion(a, b, a.detach(), b.detach(), ids=ids)
        if self.training:
            self.criterion.enqueue(a.detach(), b.detach(), ids=ids)
        return {"loss": loss}


def trainer(host: Any, out: Path, **arguments: Any) -> Any:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(STEPS * ROWS, 2, 6, generator=generator)
    data = [{"image": a, "text": b, "ids": n} for n, (a, b) in enumerate(rows)]
    options = host.TrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVED,
        learning_rate=0.05,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        seed=3,
        **arguments,
    )
    return host.Trainer(model=Retrieval(), args=options, train_dataset=data)


@pytest.mark.parametrize("arguments", [{}, {"bf16": True}], ids=["fp32", "bf16 autocast"])
def test_a_resumed_run_is_the_uninterrupted_one(
    host: Any, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    whole = trainer(host, tmp_path / "whole", **arguments)
    whole.train()
    expected = whole.model.state_dict()
    criterion = whole.model.criterion
    assert int(criterion.steps) == STEPS and bool(criterion.warm)
    assert len(criterion.image_bank) == len(criterion.text_bank) == 16
    assert float(criterion.nce.temperature) != pytest.approx(0.07, rel=1e-3)

    checkpoint = tmp_path / "whole" / f"checkpoint-{SAVED}"
    assert (checkpoint / "model.safetensors").is_file()
    again = trainer(host, tmp_path / "again", **arguments)
    again.train(resume_from_checkpoint=str(checkpoint))
    found = again.model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
