"""Ids of strings: the same everywhere, told apart, checked."""

import pytest
import torch

from sede_kernels import MemoryBank, SEDELoss, string_ids


def test_ids_are_the_digest_whatever_the_run() -> None:
    # The first 8 bytes of BLAKE2b-64, shifted by one: they stand in saved banks.
    assert string_ids(["", "cat.jpg", "größe"]).tolist() == [
        0xE4A6A0577479B2B4 >> 1,
        8659720950869470607,
        string_ids(["größe"]).item(),
    ]


def test_ids_tell_strings_apart_and_serve_a_bank() -> None:
    ids = string_ids(f"image {n}" for n in range(5000))
    assert ids.dtype == torch.int64 and ids.unique().numel() == 5000 and int(ids.min()) >= 0
    bank = MemoryBank(4, 2)
    bank.enqueue(torch.eye(2), ids[:2])
    assert torch.equal(bank.ids[:2], ids[:2])
    assert string_ids([]).shape == (0,)


@pytest.mark.parametrize(
    ("keys", "words"),
    [("cat", "must be several strings, got one"), (["a", 3], "must be strings, got int 3")],
    ids=["one", "number"],
)
def test_other_keys_are_refused(keys, words) -> None:
    with pytest.raises(TypeError, match=words):
        string_ids(keys)


@pytest.mark.parametrize(
    ("ids", "kind", "words"),
    [
        ([1, 2**63], ValueError, r"ids must be below 2\^63, got 9223372036854775808; shift"),
        ([-(2**64), 1], ValueError, r"ids must be below 2\^63, got -18446744073709551616"),
        ([True, False], TypeError, "ids must be integers, got bool True"),
        ({3, 4}, TypeError, "ids must be a torch.Tensor of integers, got set"),
        ({3: 1, 4: 1}, TypeError, "ids must be a torch.Tensor of integers, got dict"),
    ],
    ids=["beyond", "far below", "bools", "set", "dict"],
)
def test_lists_that_are_no_ids_of_rows_are_refused(ids, kind, words) -> None:
    """A set or a mapping has no order that the rows could follow."""
    criterion = SEDELoss(4, 2)
    with pytest.raises(kind, match=words):
        criterion.enqueue(torch.eye(2), torch.eye(2), ids=ids)
    with pytest.raises(kind, match=words):
        criterion(torch.eye(2), torch.eye(2), ids=ids)
    assert len(criterion.image_bank) == len(criterion.text_bank) == 0
    criterion.enqueue(torch.eye(2), torch.eye(2), ids=[2**63 - 1, 0])
    assert criterion.text_bank.ids.tolist() == [2**63 - 1, 0, -1, -1]
