"""``from_pretrained`` of transformers: built on the meta device, filled tensor by tensor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.peers.torchvision import load_torchvision
from sede_kernels import MemoryBank, SEDELoss
from tests.conftest import unit


@pytest.fixture(scope="module")
def classes() -> tuple[Any, Any, Any]:
    """A configuration, a model, and the model with banks."""
    load_torchvision()
    host = pytest.importorskip("transformers", reason="pip install transformers")

    class Config(host.PretrainedConfig):  # type: ignore[misc, name-defined]
        model_type = "toy"

    class Base(host.PreTrainedModel):  # type: ignore[misc, name-defined]
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.encoder = nn.Linear(4, 4)
            self.post_init()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)

    class WithBank(Base):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.queue = MemoryBank(6, 4, dtype=torch.int8)
            self.criterion = SEDELoss(6, 4, start_step=3)

    return Config, Base, WithBank


def empty(bank: MemoryBank) -> bool:
    return bank.ids.tolist() == [-1] * 6 and (int(bank.ptr), len(bank), int(bank.rejected)) == (
        0, 0, 0,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_checkpoint_without_the_bank_gives_an_empty_one(classes, dtype, tmp_path: Path) -> None:
    config, base, with_bank = classes
    base(config()).save_pretrained(tmp_path)
    junk = [torch.randint(-(10**12), 10**12, (n,)) for n in (1, 6, 24) for _ in range(50)]
    del junk
    model = with_bank.from_pretrained(tmp_path, dtype=dtype)
    assert empty(model.queue) and model.queue.row_scale.dtype == torch.float32
    assert empty(model.criterion.image_bank) and empty(model.criterion.text_bank)
    assert int(model.criterion.steps) == 0


def test_memory_that_looks_like_a_count_is_none(classes, tmp_path: Path, monkeypatch) -> None:
    config, base, with_bank = classes
    base(config()).save_pretrained(tmp_path)
    monkeypatch.setattr(torch, "empty_like", lambda t, **place: torch.full_like(t, 3, **place))
    model = with_bank.from_pretrained(tmp_path)
    assert int(model.criterion.steps) == 0
    assert empty(model.queue) and empty(model.criterion.image_bank)


def test_a_checkpoint_with_the_bank_brings_it_back(classes, tmp_path: Path) -> None:
    config, _, with_bank = classes
    model = with_bank(config())
    keys = unit(4, 4, dtype=torch.float32)
    model.queue.enqueue(keys, torch.arange(4))
    model.criterion.enqueue(keys, keys)
    model.save_pretrained(tmp_path)  # safetensors
    again = with_bank.from_pretrained(tmp_path)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
