"""Hosts, imported if installed; else the test skips with the line that installs them."""

import importlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, files
from types import ModuleType

import pytest
import torch

PIP = {
    "open_clip": "pip install 'sede-kernels[open-clip]'",
    "sentence_transformers": "pip install 'sede-kernels[sentence-transformers]'",
    "pytorch_metric_learning": "pip install 'sede-kernels[metric-learning]'",
    "lightly": "pip install 'sede-kernels[lightly]'",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The tensors are tiny: on a busy machine threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def torchvision_operators() -> Iterator[None]:
    """Declare torchvision's operators where a CUDA build of it meets a CPU torch.

    Its shared library cannot be loaded there, so the operators that its Python files give a fake
    kernel do not exist and the import fails. The hosts import torchvision but call none of them.
    """
    if torch.version.cuda is not None:
        yield
        return
    try:
        sources = [f for f in files("torchvision") or [] if f.name == "_meta_registrations.py"]
    except PackageNotFoundError:
        yield
        return
    text = sources[0].read_text()
    names = re.findall(r'register_meta\("(\w+)"', text)
    names += re.findall(r'register_fake\("torchvision::(\w+)"', text)
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in names:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}() -> Tensor")
    yield  # the operators live as long as the library object


def load(name: str) -> ModuleType:
    """The host module, or a skip naming what to install."""
    root = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        pytest.skip(f"{root} is not installed: {PIP[root]}")


@pytest.fixture(scope="session")
def open_clip(torchvision_operators: None) -> ModuleType:
    return load("open_clip")


@pytest.fixture(scope="session")
def sentence_transformers(torchvision_operators: None) -> ModuleType:
    return load("sentence_transformers")


@pytest.fixture(scope="session")
def metric_learning(torchvision_operators: None) -> ModuleType:
    return load("pytorch_metric_learning")


@pytest.fixture(scope="session")
def lightly_loss(torchvision_operators: None) -> ModuleType:
    return load("lightly.loss")
