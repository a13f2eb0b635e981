"""The open_clip twin against the real ClipLoss, in a package's own training loop."""

import copy
import importlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sede_kernels.integrations import open_clip as twin
from sede_kernels.integrations.open_clip import ClipLoss, create_loss
from tests.conftest import unit

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {
        "image_size": 16,
        "layers": 1,
        "width": 32,
        "patch_size": 8,
        "head_width": 16,
    },
    "text_cfg": {"context_length": 8, "vocab_size": 40, "width": 32, "heads": 2, "layers": 1},
}


def arguments(**changes: object) -> SimpleNamespace:
    values = {
        "model": "ViT-B-32",
        "distill": False,
        "siglip": False,
        "local_loss": False,
        "gather_with_grad": False,
        "horovod": False,
        "rank": 0,
        "world_size": 1,
        "accum_freq": 1,
        "loss_dist_impl": None,
    }
    return SimpleNamespace(**{**values, **changes})


def features(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    scale = torch.tensor(14.3, dtype=dtype, requires_grad=True)
    return unit(7, 16, dtype=dtype).requires_grad_(), unit(7, 16, dtype=dtype), scale


@pytest.mark.parametrize("rows", [0, 4096], ids=["fused", "dense"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_equals_the_real_loss_in_value_and_gradient(
    open_clip: ModuleType, bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "DENSE_ROWS", rows)
    image, text, scale = features()
    text.requires_grad_()
    logit_bias = torch.tensor(-3.0, dtype=torch.float64) if bias else None
    host = open_clip.create_loss(arguments())(image, text, scale, logit_bias, output_dict=True)
    ours = create_loss(arguments())(image, text, scale, logit_bias, output_dict=True)
    assert host.keys() == ours.keys()
    host, ours = host["contrastive_loss"], ours["contrastive_loss"]
    torch.testing.assert_close(ours, host)
    inputs = (image, text, scale)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), torch.autograd.grad(host, inputs))


def test_bank_adds_its_rows_to_the_softmax_and_hides_the_same_id() -> None:
    criterion = ClipLoss(bank_size=9, dim=16, bank_dtype=torch.float64)
    first = features()
    criterion(*first, ids=range(7))
    image, text, scale = features()
    ids = torch.tensor([3, 8, 8, 0, 11, 12, 13])
    ours = criterion(image, text, scale, ids=ids)
    want = torch.zeros((), dtype=torch.float64)
    for query, key, stored in ((image, text, first[1]), (text, image, first[0].detach())):
        logits = scale * torch.cat([query @ key.T, query @ stored.T], 1)
        same = ids.unsqueeze(1) == torch.cat([ids, torch.arange(7)])
        same[:, :7].fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        want = want + nn.functional.cross_entropy(logits, torch.arange(7)) / 2
    torch.testing.assert_close(ours, want)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (image, scale)), torch.autograd.grad(want, (image, scale))
    )


def step(model: nn.Module, loss: ClipLoss, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """One step of open_clip_train.train_one_epoch without accumulation."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 16, 16, generator=generator)
    texts = torch.randint(1, 40, (6, 8), generator=generator)
    losses = loss(**model(images, texts), output_dict=True)
    assert all(name.endswith("_loss") for name in losses)
    total = sum(losses.values())
    optimizer.zero_grad()
    total.backward()
    optimizer.step()
    return total.item()


def test_real_model_trains_and_resumes_with_its_bank(open_clip: ModuleType) -> None:
    def build() -> tuple[nn.Module, ClipLoss, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = open_clip.CLIP(**SMALL, output_dict=True)
        loss = create_loss(arguments(), bank_size=20, dim=16, hardness=2.0)
        return model, loss, torch.optim.AdamW(model.parameters(), lr=1e-3)

    parts = build()
    for seed in range(5):
        step(*parts, seed)
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    assert len(parts[1].image_bank) == 20
    straight = [step(*parts, seed) for seed in (5, 6)]
    resumed = build()
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert [step(*resumed, seed) for seed in (5, 6)] == straight


class Pairs:
    """What of open_clip_train's data loaders its loop reads."""

    num_batches, num_samples = 4, 24

    def __init__(self) -> None:
        self.dataloader = self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        for _ in range(self.num_batches):
            images = torch.randn(6, 3, 16, 16, generator=generator)
            yield images, torch.randint(1, 40, (6, 8), generator=generator)


@pytest.mark.parametrize("accum_freq", [1, 2], ids=["plain", "accumulating"])
def test_trains_inside_the_host_s_own_loop(open_clip: ModuleType, accum_freq: int) -> None:
    """Value by value the host's loss until the bank counts; each pair is stored once."""
    train = importlib.import_module("open_clip_train.train")
    args = arguments(
        accum_freq=accum_freq,
        device="cpu",
        precision="fp32",
        skip_scheduler=True,
        grad_clip_norm=1.0,
        log_every_n_steps=1,
        batch_size=6,
        wandb=False,
    )
    weights = []
    ours = create_loss(args, bank_size=64, dim=16, start_step=4)
    for loss in (open_clip.create_loss(args), ours):
        torch.manual_seed(0)
        model = open_clip.CLIP(**SMALL, output_dict=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rest = (0, optimizer, None, None, None, args)
        train.train_one_epoch(model, {"train": Pairs()}, loss, *rest)
        weights.append(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(weights[1], weights[0])
    assert len(ours.image_bank) == len(ours.text_bank) == 24
    assert ours.steps == 4 // accum_freq
    ours.start_step = 0
    train.train_one_epoch(model, {"train": Pairs()}, ours, 1, *rest[1:])
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert len(ours.image_bank) == 48


def test_validation_and_evaluation_mode_store_nothing() -> None:
    criterion = ClipLoss(bank_size=64, dim=16)
    with torch.no_grad():
        criterion(*features())
    criterion.eval()
    criterion(*features())
    assert len(criterion.image_bank) == 0


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        pytest.param(lambda: ClipLoss(bank_size=4), "needs dim too", id="dim"),
        pytest.param(lambda: ClipLoss(local_loss=True, world_size=2), "local_loss", id="local"),
        pytest.param(lambda: ClipLoss(use_horovod=True), "use_horovod", id="horovod"),
        pytest.param(lambda: create_loss(arguments(siglip=True)), "SigLIP", id="siglip"),
        pytest.param(lambda: create_loss(arguments(distill=True)), "distillation", id="distill"),
        pytest.param(lambda: create_loss(arguments(model="coca_ViT-B-32")), "CoCa", id="coca"),
        pytest.param(lambda: ClipLoss()(*features(), ids=[1]), r"ids must be \(7,\)", id="ids"),
    ],
)
def test_wrong_use_gets_one_sentence(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
