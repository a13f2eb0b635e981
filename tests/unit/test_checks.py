"""checks.py: the same sentence for a wrong id, count or choice, whoever asks."""

import numpy as np
import pytest
import torch

from sede_kernels import FragmentBank, MemoryBank, attention_erase, hardest_negatives
from sede_kernels.checks import check_choice, check_count, check_ids, check_key_ids, is_integer
from sede_kernels.distributed import gather_keys
from sede_kernels.integrations.moco import MoCoQueue


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)], ids=lambda v: type(v).__name__)
def test_counts_of_any_integer_type_pass_as_int(value):
    found = check_count("f", "n", value, least=3)
    assert (found, type(found)) == (3, int)


@pytest.mark.parametrize("value", [2, True, 3.0, "3", None, torch.ones(2)], ids=str)
def test_anything_else_is_no_count(value):
    with pytest.raises(ValueError, match=r"^f: n must be an integer >= 3, got"):
        check_count("f", "n", value, least=3)


@pytest.mark.parametrize(
    "call,argument",
    [
        (lambda: MemoryBank(True, 4), "MemoryBank: size"),
        (lambda: FragmentBank(4, 2.0, 3), "FragmentBank: "),
        (lambda: MoCoQueue(4, 0), "MoCoQueue: K"),
        (
            lambda: hardest_negatives(torch.ones(1, 2), torch.ones(3, 2), True),
            "hardest_negatives: k",
        ),
        (lambda: attention_erase(torch.ones(1, 3), keep_min=1.0), "attention_erase: keep_min"),
    ],
    ids=["bank", "fragment bank", "twin", "function", "erasing"],
)
def test_all_layers_say_it_alike(call, argument):
    with pytest.raises(ValueError, match="must be an integer >= 1, got") as caught:
        call()
    assert str(caught.value).startswith(argument)


@pytest.mark.parametrize(
    "dtype,counts",
    [
        (torch.int64, True), (torch.uint8, True), (torch.bool, False), (torch.bfloat16, False),
        (torch.complex64, False),
    ],
)  # fmt: skip
def test_what_an_integer_is(dtype, counts):
    assert is_integer(dtype) == counts
    ids = torch.ones(2, dtype=dtype)
    if counts:
        assert torch.equal(check_ids("f", "ids", ids, 2), torch.ones(2, dtype=torch.int64))
        return
    for call in (
        lambda: check_ids("f", "ids", ids, 2),
        lambda: MemoryBank(4, 3).enqueue(torch.ones(2, 3), ids),
        lambda: gather_keys(torch.ones(2, 3), ids),
        lambda: FragmentBank(4, 2, 3).enqueue(torch.ones(2, 2, 3), ids=ids),
    ):
        with pytest.raises(TypeError, match=r": ids must be integers \(int64\), got torch\."):
            call()


def test_ids_of_keys_are_not_negative():
    device = torch.device("cpu")
    assert check_key_ids("f", torch.tensor([0, 5]), 2, device).tolist() == [0, 5]
    assert check_key_ids("f", torch.empty(0, dtype=torch.int64), 0, device).tolist() == []
    with pytest.raises(ValueError, match=r"ids must be >= 0 \(-1 marks an empty slot\), got -2"):
        check_key_ids("f", torch.tensor([0, -2]), 2, device)


def test_a_choice_may_be_of_any_kind():
    check_choice("f", "measure", None, ("cosine", None, False))
    with pytest.raises(ValueError, match="f: measure must be one of cosine, None, got 'order'"):
        check_choice("f", "measure", "order", ("cosine", None))
