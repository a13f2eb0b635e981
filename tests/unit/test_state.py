"""State of banks and criteria under what others do to a model: cast, build late, save, load."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from sede_kernels import FragmentBank, MemoryBank, MomentumEncoder, SEDELoss, weighted_info_nce
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.objective import VectorObjective
from tests.conftest import unit

OLD = torch.load(Path(__file__).parent / "data" / "state_0_1_0.pt", weights_only=True)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def f32(*shape: int) -> torch.Tensor:
    return unit(*shape, dtype=torch.float32)


def memory(dtype: torch.dtype = torch.int8) -> MemoryBank:
    bank = MemoryBank(6, 4, dtype=dtype)
    bank.enqueue(f32(4, 4), torch.arange(4))
    return bank


def fragments() -> FragmentBank:
    bank = FragmentBank(6, 3, 4)
    bank.enqueue(f32(4, 3, 4), torch.tensor([1, 2, 3, 2]), torch.arange(4))
    return bank


def criterion(**options: object) -> SEDELoss:
    loss = SEDELoss(
        6, 4, dtype=torch.int8, start_step=2, learn_temperature=True, learn_hardness=True,
        hardness=3.0, **options,
    )  # fmt: skip
    loss.enqueue(f32(4, 4), f32(4, 4), ids=torch.arange(4))
    return loss


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name])
        for name in left
    )


def is_empty(bank: MemoryBank | FragmentBank) -> bool:
    counters = [int(bank.ptr), int(bank.count), int(bank.rejected)]
    return bank.ids.tolist() == [-1] * 6 and counters == [0, 0, 0] and not bank.rows.any()


def garbage() -> None:
    """Fill memory that is free again with what no bank would hold."""
    junk = [torch.randint(-(10**12), 10**12, (n,)) for n in (1, 6, 24, 72) for _ in range(50)]
    del junk


@pytest.mark.parametrize("default", DTYPES, ids=str)
def test_every_dtype_is_said_whatever_the_default_is(default, backend) -> None:
    torch.set_default_dtype(default)
    try:
        made = [MemoryBank(6, 4), MemoryBank(6, 4, dtype=torch.int8), FragmentBank(6, 3, 4)]
        loss = SEDELoss(6, 4, learn_temperature=True, learn_hardness=True)
        keys = f32(5, 4)
        for bank in made[:2]:
            bank.enqueue(keys, torch.arange(5), backend=backend)
            assert (bank.dense()[:5] - keys).abs().max() <= 1 / 254
            got = weighted_info_nce(keys, keys, bank, backend=backend)
            want = weighted_info_nce(keys, keys, bank.dense()[:5], backend=backend)
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    integers = {"ids", "ptr", "count", "rejected", "lengths", "home"}
    for bank in made:
        for name, buffer in bank.named_buffers():
            dtype = torch.int64 if name in integers else torch.float32
            assert buffer.dtype == (torch.int8 if buffer.dtype == torch.int8 else dtype), name
    assert all(p.dtype == torch.float32 and p.shape == (1,) for p in loss.parameters())


CASTS = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "double": lambda m: m.double(),
    "type": lambda m: m.type(torch.float64),
    "back and forth": lambda m: m.half().double().float(),
    "float8": lambda m: m.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("cast", CASTS, ids=str)
def test_a_cast_reaches_floating_rows_and_nothing_else(cast) -> None:
    quantised, plain, sets = memory(), memory(torch.float32), fragments()
    before = copy.deepcopy(quantised), copy.deepcopy(plain), copy.deepcopy(sets)
    for bank, old in zip((quantised, plain, sets), before, strict=True):
        CASTS[cast](nn.ModuleDict({"bank": bank}))
        for name, value in bank.state_dict().items():
            if name != "rows":
                assert value.dtype == old.state_dict()[name].dtype
                assert torch.equal(value, old.state_dict()[name]), name
        assert len(bank) == 4
    assert torch.equal(quantised.rows, before[0].rows)
    torch.testing.assert_close(plain.rows.float(), before[1].rows, rtol=0.01, atol=0.01)
    quantised.enqueue(f32(9, 4))
    assert (quantised.ids == -2).all()


def test_scales_that_a_wrapper_cast_behind_the_back_are_said_again(backend) -> None:
    """Buffers swapped in the module's dict, or through ``.data``, as FSDP casts them."""
    keys = f32(6, 4)
    for swap in ("buffers", "data", "attribute"):
        bank = MemoryBank(6, 4, dtype=torch.int8)
        bank.enqueue(keys, torch.arange(6), backend=backend)
        scale = bank.row_scale.to(torch.bfloat16)
        if swap == "buffers":
            bank._buffers["row_scale"] = scale.double()
            bank._buffers["ids"] = bank.ids.int()
        elif swap == "data":
            bank.row_scale.data = scale
        else:
            bank.row_scale = scale
        loss = weighted_info_nce(keys, keys, bank, backend=backend)
        assert loss.isfinite() and bank.row_scale.dtype == torch.float32
        bank.enqueue(keys, backend=backend)
        assert (bank.dense() - keys).abs().max() <= 1 / 254 and bank.ids.dtype == torch.int64


@pytest.mark.parametrize("build", [memory, fragments, criterion], ids=lambda f: f.__name__)
def test_what_leaves_the_meta_device_is_empty(build) -> None:
    module = build()
    module.to("meta")
    garbage()
    module.to_empty(device="cpu")
    banks = [m for m in module.modules() if isinstance(m, MemoryBank | FragmentBank)]
    assert banks and all(is_empty(bank) for bank in banks)
    if isinstance(module, SEDELoss):
        assert int(module.steps) == 0
        assert float(module.nce.temperature.detach()) == pytest.approx(0.07)
        assert float(module.nce.hardness) == 3.0
        assert module(f32(3, 4), f32(3, 4)).isfinite()


@pytest.mark.parametrize("build", [memory, fragments, criterion], ids=lambda f: f.__name__)
def test_to_empty_of_a_real_module_empties_it_and_a_move_does_not(build) -> None:
    module, twin = build(), build()
    twin.load_state_dict(module.state_dict())
    module._apply(lambda t: t.clone())
    assert same(module, twin)
    module.to_empty(device="cpu")
    banks = [m for m in module.modules() if isinstance(m, MemoryBank | FragmentBank)]
    assert all(is_empty(bank) for bank in banks)


@pytest.mark.parametrize("complete", [True, False], ids=["saved bank", "no bank"])
def test_tensors_put_into_a_module_on_the_meta_device(complete) -> None:
    """What transformers does in ``from_pretrained``: buffer by buffer, empty where it has none."""
    saved = memory().state_dict()
    with torch.device("meta"):
        bank = MemoryBank(6, 4, dtype=torch.int8)
        twin = copy.deepcopy(bank)
    garbage()
    for one in (bank, twin):
        for name, value in saved.items():
            tensor = value.clone() if complete else torch.empty_like(value)
            if one is bank:
                setattr(one, name, tensor)
            else:  # accelerate
                one._buffers[name] = tensor
        one.home = torch.empty((), dtype=torch.int64)
        assert len(one) == (4 if complete else 0)
        if complete:
            assert all(torch.equal(one.state_dict()[name], saved[name]) for name in saved)
        else:
            assert is_empty(one)


@pytest.mark.parametrize("build", [memory, fragments, criterion], ids=lambda f: f.__name__)
def test_saved_and_restored_by_every_means(build, tmp_path) -> None:
    module = build()
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    safetensors.save_model(module, str(tmp_path / "model.safetensors"))
    from_file = build()
    safetensors.load_model(from_file, str(tmp_path / "model.safetensors"))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded, assigned = build(), build()
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assigned.to("meta").load_state_dict(copy.deepcopy(module.state_dict()), assign=True)
    others = [
        from_file, loaded, assigned, copy.deepcopy(module), pickle.loads(pickle.dumps(module)),
    ]  # fmt: skip
    assert all(isinstance(value, torch.Tensor) for value in module.state_dict().values())
    for other in others:
        assert same(other, module)
    module.reset_parameters()
    assert not same(others[0], module)
    banks = [m for m in module.modules() if isinstance(m, MemoryBank | FragmentBank)]
    assert all(is_empty(bank) for bank in banks)


def test_what_0_1_0_saved_goes_on() -> None:
    loss = SEDELoss(
        6, 4, dtype=torch.int8, start_step=2, temperature=0.9, learn_temperature=True,
        learn_hardness=True, in_batch_negatives=False,
    )  # fmt: skip
    loss.load_state_dict(OLD["criterion"])
    assert int(loss.steps) == 2 and bool(loss.warm)
    assert float(loss.nce.temperature) == pytest.approx(0.1)
    assert loss.nce.hardness.shape == (1,) and float(loss.nce.hardness) == 3.0
    got = loss(OLD["image"], OLD["text"], ids=OLD["ids"])
    torch.testing.assert_close(got, OLD["loss"], rtol=1e-6, atol=0)
    for build, name, filled in (
        (FragmentBank(4, 3, 2), "fragment_bank", 4), (MemoryBank(4, 3), "memory_bank", 3),
    ):  # fmt: skip
        build.load_state_dict(OLD[name])
        assert (len(build), int(build.rejected)) == (filled, 0)
        assert all(torch.equal(build.state_dict()[key], value) for key, value in OLD[name].items())
    objective = VectorObjective(TrainConfig(data="x", model="scan", bank=3, dim=2), 2)
    objective.load_state_dict(OLD["vector_objective"])
    assert len(objective.image_bank) == 2
    slow = MomentumEncoder(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), 0.9)
    slow.load_state_dict(OLD["momentum_encoder"])
    for key, value in OLD["momentum_encoder"].items():
        assert torch.equal(slow.state_dict()[key], value), key
