"""open_clip's own trainer with the documented changes: it trains, saves the banks and resumes."""

import importlib
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from sede_kernels.integrations import open_clip as twin
from sede_kernels.integrations.open_clip import ClipLoss, create_loss, load_loss
from tests.integrations import recipes
from tests.integrations.open_clip_steps import add_model, differing, logged, train, vary


@pytest.fixture
def quiet() -> Iterator[None]:
    """The host's ``setup_logging`` adds handlers to the root logger, and sets every level."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in list(root.manager.loggerDict)}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in list(root.manager.loggerDict):
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))


@pytest.fixture
def trainer(
    open_clip: ModuleType, quiet: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """``open_clip_train.main`` after the recipe."""
    for needed in ("pandas", "webdataset", "braceexpand"):
        pytest.importorskip(needed, reason=f"pip install {needed}")
    source = Path(importlib.import_module("open_clip_train").__file__).parent
    shutil.copytree(source, tmp_path / "open_clip_train")
    recipes.apply(tmp_path, recipes.documented()["open_clip-3.3"])
    add_model(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip_train"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    vary(importlib.import_module("open_clip_train.data"))
    return importlib.import_module("open_clip_train.main")


def test_documented_lines_train_and_resume_in_the_host_s_main(
    trainer: ModuleType, tmp_path: Path
) -> None:
    assert Path(trainer.__file__).parent.parent == tmp_path
    logs = tmp_path / "logs"
    straight = train(trainer, logs, "straight", 2)
    half = train(trainer, logs, "half", 1)
    resumed = train(trainer, logs, "resumed", 2, resume=half["path"])
    assert straight["loss"]["text_bank.rows"].shape == (65536, 16)
    assert int(half["loss"]["text_bank.count"]) == 12
    assert int(resumed["loss"]["text_bank.count"]) == 24
    assert not differing(straight, resumed)
    losses = logged(logs, "straight")
    assert losses == logged(logs, "half") + logged(logs, "resumed")
    assert len(set(losses)) == 6


def test_loss_of_version_4_arguments(open_clip: ModuleType) -> None:
    """Version 4 has no ``horovod``, and its task reads these attributes of the loss."""
    values = {
        "distill": False,
        "siglip": False,
        "local_loss": True,
        "gather_with_grad": True,
        "rank": 0,
        "world_size": 1,
        "accum_freq": 1,
    }
    args = SimpleNamespace(model="ViT-B-32", torchcompile=True, **values)
    loss = create_loss(args, bank_size=4)
    assert loss.text_bank.rows.shape == (4, 512)  # asked of the host
    assert (loss.local_loss, loss.gather_with_grad, loss.cache_labels) == (True, True, False)
    args.torchcompile_strategy = "model"
    assert create_loss(args).cache_labels is True
    for name in ("genlip-base", "NaFlexGenLAP"):
        args.model = name
        with pytest.raises(ValueError, match="ask for GenLIP"):
            create_loss(args)
    args.model = "no-such-model"
    with pytest.raises(ValueError, match="pass dim"):
        create_loss(args, bank_size=4)


def scale_of_shape(shape: tuple[int, ...]) -> Tensor:
    return torch.full(shape, 10.0, requires_grad=True)


@pytest.mark.parametrize("bank_size", [0, 6])
@pytest.mark.parametrize("shape", [(), (1,)], ids=["plain", "fsdp"])
def test_scale_of_fsdp_gives_the_same_scalar(shape: tuple[int, ...], bank_size: int) -> None:
    """Version 4 under FSDP2 gives the inverse temperature one dimension."""
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(3, 8), dim=1) for _ in range(2))
    image.requires_grad_()
    loss = ClipLoss(bank_size=bank_size, dim=8)
    first = loss(image, text, scale_of_shape(shape))
    want = torch.nn.functional.cross_entropy(10.0 * image @ text.t(), torch.arange(3))
    back = torch.nn.functional.cross_entropy(10.0 * text @ image.t(), torch.arange(3))
    assert first.shape == ()
    torch.testing.assert_close(first, (want + back) / 2)


def test_a_checkpoint_without_banks_gets_one_sentence(tmp_path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {}}, tmp_path / "epoch_1.pt")
    with pytest.raises(ValueError, match="no entry 'loss'"):
        load_loss(twin.ClipLoss(bank_size=4, dim=8), tmp_path / "epoch_1.pt")
