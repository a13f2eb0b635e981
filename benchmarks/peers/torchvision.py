"""Load a torchvision built for CUDA beside a CPU build of torch."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path

import torch

_library: torch.library.Library | None = None


def load_torchvision() -> None:
    """Import torchvision where it is installed, declaring its operators if nothing else does.

    A CUDA build's shared library cannot be loaded by a CPU torch, so the operators to which its
    Python files give a fake kernel do not exist, and the import fails. The hosts that import
    torchvision call none of them: their names are enough.
    """
    global _library  # noqa: PLW0603 - the operators live as long as the library object
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    try:
        importlib.import_module("torchvision")
        return
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    text = (Path(spec.origin).parent / "_meta_registrations.py").read_text()
    names = re.findall(r'register_meta\("(\w+)"', text)
    names += re.findall(r'register_fake\("torchvision::(\w+)"', text)
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in names:
        if not hasattr(torch.ops.torchvision, name):
            _library.define(f"{name}() -> Tensor")
    importlib.import_module("torchvision")
