"""A run's folder with any bytes changed: refused in one sentence, or read as if all were there.

Seeded changes of every file that a run is continued or scored from: a flipped bit, bytes cut out,
doubled, zeroed or put in, an end cut off. What is accepted must give back the very weights, banks
and place, or the very scores, of the undamaged run.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training import state
from sede_kernels.training.loop import StoppedError, Trainer

from .conftest import TINY, write_family_folder

RESUMED = ("config.json", "vocab.json", "last.pt", "best.pt", "metrics.jsonl")
SCORED = ("config.json", "vocab.json", "best.pt")
EACH = 30
WORDS = ["train", "--data=tiny", *TINY, "--bank=8", "--weighting=2", "--erase"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A data folder and a run of one epoch in it."""
    home = tmp_path_factory.mktemp("mutations")
    write_family_folder(home / "tiny_precomp", regions=3, width=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEDE_DATA", str(home))
        assert main([*WORDS, "--out", str(home / "run")]) == 0
    return home


@pytest.fixture
def out(home, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SEDE_DATA", str(home))
    return shutil.copytree(home / "run", tmp_path / "run")


def changed(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one random change."""
    at, some = rng.randrange(len(data)), rng.randrange(1, 9)
    kind = rng.choice(("bit", "byte", "cut out", "doubled", "zeroed", "put in", "end cut off"))
    before, after = data[:at], data[at + some :]
    if kind == "bit":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == "byte":
        return data[:at] + rng.randbytes(1) + data[at + 1 :]
    middle = {
        "cut out": b"",
        "doubled": data[at : at + some] * 2,
        "zeroed": bytes(some),
        "put in": rng.randbytes(some) + data[at : at + some],
    }
    return before if kind == "end cut off" else before + middle[kind] + after


def changes(path: Path) -> Iterator[tuple[int, bytes]]:
    """Change a file in turn in each way; gives the seed and what the file held."""
    data = path.read_bytes()
    for seed in range(EACH):
        damaged = changed(data, random.Random(f"{path.name} {seed}"))
        if damaged != data:
            path.write_bytes(damaged)
            yield seed, data


def outcome(capfd, *words: object) -> tuple[int, str]:
    """Exit status, and what was said: of a refusal one sentence."""
    capfd.readouterr()
    status = main([str(word) for word in words])
    said = capfd.readouterr()
    if status == 1:
        assert said.err.startswith("sede: ") and said.err.count("\n") == 1, said.err
    return status, said.out


def contents(snapshot: dict) -> list:
    """All that a run goes on from, but for settings that may be edited, flat."""
    flat = []

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for name in value:
                flat.append(name)
                walk(value[name])
        elif isinstance(value, (list, tuple)):
            for item in value:
                walk(item)
        else:
            flat.append(value.tolist() if isinstance(value, torch.Tensor) else value)

    walk({name: value for name, value in snapshot.items() if name not in ("config", "log_bytes")})
    return flat


@pytest.mark.parametrize("name", RESUMED)
def test_resume(name, out, monkeypatch, capfd):
    found = []

    def stop(self: Trainer) -> None:
        found.append(contents(state.snapshot(self)))
        raise StoppedError

    monkeypatch.setattr(Trainer, "run", stop)
    assert outcome(capfd, "train", "--resume", out)[0] == 130
    (whole,) = found
    for seed, data in changes(out / name):
        found.clear()
        status, _ = outcome(capfd, "train", "--resume", out)
        assert (status, found) in ((1, []), (130, [whole])), seed
        (out / name).write_bytes(data)


@pytest.mark.parametrize("name", SCORED)
def test_eval(name, out, capfd):
    whole = outcome(capfd, "eval", out)
    assert whole[0] == 0
    for seed, data in changes(out / name):
        assert outcome(capfd, "eval", out) in (whole, (1, "")), seed
        (out / name).write_bytes(data)
