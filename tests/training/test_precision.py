"""Encoders in bfloat16, and a compiled step: the same training within their roundings."""

import functools

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training.loop import Trainer

from .conftest import TINY, refused


def losses(out, monkeypatch, *flags: str) -> list[float]:
    """Of every step of a run."""
    found = []
    step = Trainer.train_step

    def counted(self, batch):
        found.append(step(self, batch))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", counted)
        command = ["train", "--data=tiny", *TINY, "--dropout=0", "--bank-keys=online", *flags]
        assert main([*command, "--out", str(out)]) == 0
    return found


@pytest.mark.parametrize("model", ["vse", "scan"])
def test_encoders_multiply_in_bf16_and_losses_stay_fp32(model, tiny, tmp_path, monkeypatch):
    flags = [f"--model={model}", "--bank=9", "--lr=1e-4"]
    expected = losses(tmp_path / "fp32", monkeypatch, *flags)
    seen = set()
    linear = torch.nn.functional.linear

    def watched(*args, **kwargs):
        found = linear(*args, **kwargs)
        seen.add(found.dtype)
        return found

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    found = losses(tmp_path / "bf16", monkeypatch, *flags, "--precision=bf16")
    # Cosines of bf16 vectors are off by 2^-7 or so, over a temperature of 0.05 or 0.1.
    assert found == pytest.approx(expected, abs=0.3) and found != expected
    assert torch.bfloat16 in seen
    weights = torch.load(tmp_path / "bf16" / "best.pt", weights_only=True)["model"]
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_compiled_step_trains_as_an_eager_one(tiny, tmp_path, monkeypatch):
    expected = losses(tmp_path / "eager", monkeypatch, "--bank=9")
    compiled = []
    real = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", lambda step: compiled.append(step) or real(step))
    found = losses(tmp_path / "compiled", monkeypatch, "--bank=9", "--compile")
    assert len(compiled) == 1
    assert found == pytest.approx(expected, rel=1e-4)


def test_precision_stays_that_of_the_run(tiny, tmp_path, capfd):
    out = str(tmp_path / "run")
    assert main(["train", "--data=tiny", *TINY, "--out", out]) == 0
    assert "--precision" in refused(capfd, "train", "--resume", out, "--precision=bf16")
    assert main(["train", "--resume", out, "--compile=off"]) == 0
