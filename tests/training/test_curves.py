"""What a run says while it runs, and what `sede eval` writes beside its table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sede_kernels import MemoryBank
from sede_kernels.cli import main
from sede_kernels.training import curves
from sede_kernels.training.curves import Curves, left, spoken
from tests.training.conftest import write_family_folder


class Writer:
    """Stands for TensorBoard's."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.points.setdefault(name, []).append((step, value))


def test_every_tenth_step_is_a_point_of_each_curve() -> None:
    objective = nn.Module()
    objective.image_bank = MemoryBank(8, 2)
    objective.image_bank.enqueue(torch.eye(2))
    writer = Writer()
    points = Curves(writer)
    for step in range(1, 21):
        points.step(
            step, step / 2, rate=0.1, temperature=0.05, norm=torch.tensor(3.0), objective=objective
        )
    assert writer.points["step/loss"] == [(10, 5.0), (20, 10.0)]
    assert writer.points["step/rate"] == [(10, 0.1), (20, 0.1)]
    assert writer.points["step/temperature"][0] == (10, 0.05)
    assert writer.points["step/gradient_norm"][0] == (10, 3.0)
    assert writer.points["step/bank_fill"][0] == (10, 0.25)
    points.step(30, 1.0, rate=0.1, temperature=0.05, norm=None, objective=nn.Module())
    assert len(writer.points["step/bank_fill"]) == 2  # no bank, no curve


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (600, "10 min"), (12_000, "3 h 20 min")],
)
def test_times_are_spoken(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_the_time_left_is_that_of_the_remaining_steps() -> None:
    assert left(10.0, 20, 60) == "20 s left"
    assert left(0.0, 0, 60) == ""
    assert left(10.0, 60, 60) == ""


def test_a_run_writes_curves_and_eval_writes_json_and_ranks(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "EVERY", 2)
    monkeypatch.setattr(curves, "PATIENCE", 0.0)
    folder = write_family_folder(tmp_path / "f30k_precomp", width=16)
    out = tmp_path / "run"
    words = ["train", "--data", str(folder), "--out", str(out), "--epochs", "2", "--dim", "8"]
    assert main([*words, "--model", "vse", "--bank", "16", "--batch-size", "8"]) == 0
    said = capfd.readouterr().out
    assert "loss " in said and "1/" in said and " left" in said
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    names = ("loss", "rate", "temperature", "gradient_norm", "bank_fill")
    assert {f"step/{name}" for name in names} <= tags
    rates = [event.value for event in events.Scalars("step/rate")]
    assert rates == sorted(rates, reverse=True)
    assert [event.step for event in events.Scalars("step/loss")][:2] == [2, 4]
    assert events.Scalars("step/bank_fill")[-1].value == 1.0

    ranks = tmp_path / "ranks.json"
    assert main(["eval", str(out), "--json", "--ranks", str(ranks)]) == 0
    found = json.loads(capfd.readouterr().out)
    written = json.loads(ranks.read_text())
    assert "chance" in found and len(found) == 2
    figures = next(value for name, value in found.items() if name != "chance")
    for way, key in (("i2t", "image_ranks"), ("t2i", "caption_ranks")):
        of_queries = np.array(written[key])
        recalls = [100 * float((of_queries <= k).mean()) for k in (1, 5, 10)]
        assert recalls == pytest.approx(figures[way])
    assert len(written["images"]) == len(written["image_ranks"]) == figures["queries"][0]
    assert len(written["captions"]) == len(written["caption_ranks"]) == figures["queries"][1]
    assert main(["eval", str(out), "--ranks", str(tmp_path / "none" / "ranks.json")]) == 1
    assert "--ranks takes the name of a JSON file" in capfd.readouterr().err
