"""Banks outside the model in the trainers' own checkpoints: a resumed run is the whole one."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers.torchvision import load_torchvision
from sede_kernels import SEDELoss
from sede_kernels.integrations.accelerate import register_bank
from sede_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
from tests.integrations.test_sentence_transformers import WORDS, real_model

STEPS, SAVED, ROWS, SIZE = 6, 3, 4, 13


@pytest.fixture(autouse=True)
def _torchvision() -> None:
    load_torchvision()


def rows(count: int = STEPS * ROWS) -> Tensor:
    return torch.randn(count, 2, 6, generator=torch.Generator().manual_seed(5))


class Encoders(nn.Module):
    """Two encoders without a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.images, self.texts = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return F.normalize(self.images(image), dim=1), F.normalize(self.texts(text), dim=1)


def loss_and_store(criterion: SEDELoss, pair: tuple[Tensor, Tensor], ids: Tensor) -> Tensor:
    image, text = pair
    keys = image.detach(), text.detach()
    loss = criterion(image, text, *keys, ids=ids)
    criterion.enqueue(*keys, ids=ids)
    return loss


def criterion_of() -> SEDELoss:
    torch.manual_seed(2)
    return SEDELoss(SIZE, 8, start_step=2)


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    want = expected.state_dict()
    assert want.keys() == found.state_dict().keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, want[name]), name


def test_transformers_trainer_saves_and_restores_a_loss_function(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="pip install --no-deps accelerate")
    host = pytest.importorskip("transformers", reason="pip install transformers")
    from sede_kernels.integrations.transformers import SaveBank

    data = [{"image": a, "text": b, "labels": n} for n, (a, b) in enumerate(rows())]

    def trainer(out: Path, resume: Path | None = None) -> tuple[Any, SEDELoss]:
        criterion = criterion_of()
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
            seed=3,
        )

        def compute(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            return loss_and_store(criterion, outputs, labels)

        built = host.Trainer(
            model=Encoders(),
            args=options,
            train_dataset=data,
            compute_loss_func=compute,
            callbacks=[SaveBank(criterion, resume)],
        )
        return built, criterion

    whole, expected = trainer(tmp_path / "whole")
    whole.train()
    checkpoint = tmp_path / "whole" / f"checkpoint-{SAVED}"
    assert (checkpoint / "bank.pt").is_file() and not list(checkpoint.glob("*.part"))
    again, found = trainer(tmp_path / "again", checkpoint)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert len(expected.image_bank) == SIZE
    assert_equal(found, expected)
    assert_equal(again.model, whole.model)
    (checkpoint / "bank.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no bank\.pt"):
        trainer(tmp_path / "third", checkpoint)[0].train(resume_from_checkpoint=str(checkpoint))


def test_sentence_transformer_trainer_saves_and_restores_the_bank(
    sentence_transformers: ModuleType, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate", reason="pip install --no-deps accelerate")
    datasets = pytest.importorskip("datasets", reason="pip install datasets")
    from sede_kernels.integrations.transformers import SaveBank

    count = STEPS * ROWS
    data = datasets.Dataset.from_dict(
        {
            "anchor": [f"{WORDS[i]} {WORDS[(7 * i) % 30]}" for i in range(count)],
            "positive": [f"{WORDS[(3 * i) % 30]} {WORDS[i]}" for i in range(count)],
            "label": list(range(count)),
        }
    )

    def trainer(out: Path) -> tuple[Any, MultipleNegativesRankingLoss]:
        (tmp_path / "model").mkdir(exist_ok=True)
        model = real_model(sentence_transformers, tmp_path / "model")
        loss = MultipleNegativesRankingLoss(model, bank_size=SIZE, ids_in_labels=True)
        options = sentence_transformers.SentenceTransformerTrainingArguments(
            output_dir=str(out),
            use_cpu=True,
            per_device_train_batch_size=ROWS,
            max_steps=STEPS,
            save_strategy="steps",
            save_steps=SAVED,
            learning_rate=0.01,
            report_to=[],
            disable_tqdm=True,
            seed=3,
        )
        built = sentence_transformers.SentenceTransformerTrainer(
            model=model, args=options, train_dataset=data, loss=loss, callbacks=[SaveBank(loss)]
        )
        return built, loss

    whole, expected = trainer(tmp_path / "out")
    whole.train()
    assert len(expected.bank) == SIZE
    again, found = trainer(tmp_path / "out")
    again.train(resume_from_checkpoint=str(tmp_path / "out" / f"checkpoint-{SAVED}"))
    assert_equal(found.bank, expected.bank)
    assert_equal(again.model, whole.model)


def test_lightning_saves_and_restores_a_criterion_outside_the_module(tmp_path: Path) -> None:
    host = pytest.importorskip("pytorch_lightning", reason="pip install pytorch-lightning")
    SaveBank = importlib.import_module("sede_kernels.integrations.lightning").SaveBank

    class Module(host.LightningModule):
        def __init__(self, criterion: SEDELoss) -> None:
            super().__init__()
            self.encoders = Encoders()
            self.loss = [criterion]  # a list hides it from the module

        def training_step(self, batch: list[Tensor], index: int) -> Tensor:
            pair, ids = batch
            return loss_and_store(self.loss[0], self.encoders(pair[:, 0], pair[:, 1]), ids)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    def run(epochs: int, resume: Path | None = None) -> tuple[Any, Any, SEDELoss]:
        criterion = criterion_of()
        module = Module(criterion)
        data = torch.utils.data.TensorDataset(rows(12), torch.arange(12))
        trainer = host.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
            callbacks=[SaveBank(criterion)],
        )
        loader = torch.utils.data.DataLoader(data, batch_size=ROWS)
        trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume))
        return trainer, module, criterion

    _, module, expected = run(2)
    half, _, _ = run(1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, again, found = run(2, tmp_path / "half.ckpt")
    assert int(expected.steps) == 6
    assert_equal(found, expected)
    assert_equal(again, module)


def test_accelerate_saves_and_restores_a_registered_bank(tmp_path: Path) -> None:
    host = pytest.importorskip("accelerate", reason="pip install --no-deps accelerate")
    data = rows().split(ROWS)

    def build() -> tuple[Any, nn.Module, torch.optim.Optimizer, SEDELoss]:
        accelerator, model, criterion = host.Accelerator(cpu=True), Encoders(), criterion_of()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        model, optimizer = accelerator.prepare(model, optimizer)
        register_bank(accelerator, criterion)
        return accelerator, model, optimizer, criterion

    def steps(parts: Any, numbers: range) -> None:
        accelerator, model, optimizer, criterion = parts
        for number in numbers:
            pair = data[number]
            ids = torch.arange(ROWS) + ROWS * number
            loss = loss_and_store(criterion, model(pair[:, 0], pair[:, 1]), ids)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()

    whole = build()
    steps(whole, range(SAVED))
    whole[0].save_state(str(tmp_path / "state"))
    steps(whole, range(SAVED, STEPS))
    again = build()
    again[0].load_state(str(tmp_path / "state"))
    steps(again, range(SAVED, STEPS))
    assert_equal(again[3], whole[3])
    assert_equal(again[1], whole[1])
    with pytest.raises(TypeError, match=r"must be an accelerate\.Accelerator"):
        register_bank(nn.Identity(), whole[3])
    with pytest.raises(TypeError, match="must be a module with banks"):
        register_bank(whole[0], "bank")
