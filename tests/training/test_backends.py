"""Training and evaluation under ``SEDE_BACKEND=reference``: every model, bank and loss."""

import pytest

from sede_kernels.cli import main
from sede_kernels.training import loop

from .conftest import TINY, read_log

MODULES = {
    "plain": [],
    "bank": ["--bank=12", "--weighting"],
    "hinge": ["--bank=12", "--loss=hinge"],
    "whole-bank": ["--bank=12", "--bank-hardest=0", "--bank-keys=online"],
    "erase": ["--erase", "--erase-pass=second", "--bank=12"],
}


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("model", ["vse", "vsrn", "scan", "bfan"])
def test_the_reference_trains_to_the_same_loss(model, modules, tiny, tmp_path, monkeypatch, capfd):
    """The same figures as the torch backend, to the rounding of fp32; then it evaluates."""
    monkeypatch.setattr(loop, "multiplies_bf16", lambda device: False)
    losses = []
    for backend in ("torch", "reference"):
        monkeypatch.setenv("SEDE_BACKEND", backend)
        words = ["train", "--data=tiny", *TINY, f"--model={model}", *MODULES[modules]]
        assert main([*words, "--out", str(tmp_path / backend)]) == 0
        (line,) = read_log(tmp_path / backend)
        losses.append(line["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert main(["eval", str(tmp_path / "reference"), "--part=dev"]) == 0
    assert f"{line['dev']['rsum']:.1f}" in capfd.readouterr().out
