"""Hosts, imported if installed; else the test skips with the line that installs them."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.peers.torchvision import load_torchvision

PIP = {
    "open_clip": "pip install 'sede-kernels[open-clip]'",
    "sentence_transformers": "pip install 'sede-kernels[sentence-transformers]'",
    "pytorch_metric_learning": "pip install 'sede-kernels[metric-learning]'",
    "lightly": "pip install 'sede-kernels[lightly]'",
    "pylate": "pip install --no-deps pylate",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny: on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name: str) -> ModuleType:
    """The host module, or a skip naming what to install."""
    root = name.partition(".")[0]
    load_torchvision()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        pytest.skip(f"{root} is not installed: {PIP[root]}")


def part_of_sentence_transformers(name: str, before: str) -> ModuleType:
    """A module by its name in today's layout, or its name before version 5.4."""
    try:
        return importlib.import_module(f"sentence_transformers.{name}")
    except ModuleNotFoundError:
        return importlib.import_module(f"sentence_transformers.{before}")


def preprocess(model: Any) -> Callable[[list[str]], dict[str, torch.Tensor]]:
    """What makes features of texts; its name was ``tokenize`` before version 5.4."""
    made: Callable[[list[str]], dict[str, torch.Tensor]] = (
        model.preprocess if hasattr(model, "preprocess") else model.tokenize
    )
    return made


def find_package(name: str) -> str:
    """The folder of an installed package, which is not imported, or a skip."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed: {PIP[name]}")
    return str(Path(found.origin).parent)


@pytest.fixture(scope="session")
def open_clip() -> ModuleType:
    return load("open_clip")


@pytest.fixture(scope="session")
def sentence_transformers() -> ModuleType:
    return load("sentence_transformers")


@pytest.fixture(scope="session")
def metric_learning() -> ModuleType:
    return load("pytorch_metric_learning")


@pytest.fixture(scope="session")
def lightly_loss() -> ModuleType:
    return load("lightly.loss")
