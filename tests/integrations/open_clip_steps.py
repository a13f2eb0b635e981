"""open_clip's own trainer on random data: two epochs, and one that is resumed; prints JSON.

``python -m tests.integrations.open_clip_steps FOLDER``, the ``src`` of a clone, for
``check_recipes.py``. The losses are those that the host logs; the model is the smallest it builds.
"""

import importlib
import json
import logging
import re
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.peers.torchvision import load_torchvision

TINY = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 32,
        "patch_size": 8,
        "head_width": 16,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
ARGUMENTS = {
    "model": "sede-tiny",
    "dataset-type": "synthetic",
    "train-num-samples": 12,
    "batch-size": 4,
    "workers": 0,
    "lr": 1e-2,
    "warmup": 1,
    "precision": "fp32",
    "device": "cpu",
    "lr-scheduler": "const",
    "log-every-n-steps": 1,
}


def add_model(folder: Path) -> None:
    """Tell the imported open_clip of the model; writes a folder of its own for that."""
    (folder / "configs").mkdir()
    (folder / "configs" / "sede-tiny.json").write_text(json.dumps(TINY))
    importlib.import_module("open_clip").add_model_config(folder / "configs")


def vary(data: ModuleType) -> None:
    """Let the host's synthetic pairs, all of them one blank picture, be random ones.

    They come in one order: the host draws another in every epoch, also on resume.
    """
    blank = data.SyntheticDataset.__getitem__

    def item(self: Any, index: int) -> Any:
        image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        text = self.preprocess_txt(f"{index} of {index * index}")
        found = blank(self, index)
        return {"image": image, "text": text} if isinstance(found, dict) else (image, text)

    data.SyntheticDataset.__getitem__ = item
    loader = data.DataLoader

    def in_order(*arguments: Any, shuffle: bool, **settings: Any) -> Any:
        return loader(*arguments, **settings)

    data.DataLoader = in_order


def train(trainer: ModuleType, logs: Path, name: str, epochs: int, **more: str) -> dict[str, Any]:
    """One call of the host's ``main``: its last checkpoint, and where that lies."""
    chosen = {**ARGUMENTS, "logs": logs, "name": name, "epochs": epochs, **more}
    handlers = list(logging.root.handlers)
    trainer.main([text for key, value in chosen.items() for text in (f"--{key}", str(value))])
    logging.root.handlers[:] = handlers  # the host adds a file to them in every run
    path = logs / name / "checkpoints" / f"epoch_{epochs}.pt"
    return {"path": str(path), **torch.load(path)}


def logged(logs: Path, name: str) -> list[float]:
    """The losses of a run, a batch each, with the digits that the host prints."""
    text = (logs / name / "out.log").read_text()
    return [float(number) for number in re.findall(r"Contrastive_loss: (\S+) \(", text)]


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of the tensors of two checkpoints that are not the same bit for bit."""
    parts = [part for part in ("loss", "state_dict") if part in first]
    assert all(first[part].keys() == second[part].keys() for part in parts)
    return [
        f"{part}.{name}"
        for part in parts
        for name, value in first[part].items()
        if not torch.equal(value, second[part][name])
    ]


def main(folder: str) -> None:
    load_torchvision()
    torch.set_num_threads(1)
    sys.path.insert(0, folder)
    with tempfile.TemporaryDirectory() as place:
        logs = Path(place) / "logs"
        add_model(Path(place))
        vary(importlib.import_module("open_clip_train.data"))
        trainer = importlib.import_module("open_clip_train.main")
        assert Path(trainer.__file__).is_relative_to(folder), trainer.__file__
        straight = train(trainer, logs, "straight", 2)
        half = train(trainer, logs, "half", 1)
        resumed = train(trainer, logs, "resumed", 2, resume=half["path"])
        found = {
            "losses": logged(logs, "straight"),
            "resumed": not differing(straight, resumed),
        }
        assert logged(logs, "half") + logged(logs, "resumed") == found["losses"]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
