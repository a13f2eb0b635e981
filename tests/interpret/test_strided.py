"""Ids, limits, lengths and buffers that lie at strides give what dense ones give."""

import oracle
import pytest
import torch

from sede_kernels import FragmentBank, MemoryBank, functional

COLUMN = {
    "dense": lambda t: t,
    "strided": lambda t: torch.stack([t * 0 - 1, t, t * 0 - 1], 1)[:, 1],
}


def test_ids_and_limits_of_a_table():
    query, key = oracle.matrix(5, 16, 1), oracle.matrix(5, 16, 2)
    bank = oracle.matrix(11, 16, 3)
    ids = {"query_ids": oracle.ids(5, 4), "bank_ids": oracle.ids(11, 5, low=-1)}
    limit = torch.linspace(-0.3, 0.4, 5)
    calls = {
        "bank": lambda of: functional.weighted_info_nce(
            query, key, bank, limit=COLUMN[of](limit), in_batch_negatives=True, backend="triton",
            reduction="none", **{name: COLUMN[of](value) for name, value in ids.items()},
        ),
        "lse": lambda of: functional.bank_lse(
            query, bank, 3.0, backend="triton",
            **{name: COLUMN[of](value) for name, value in ids.items()},
        ),
        "hardest": lambda of: functional.hardest_negatives(
            query, bank, 3, backend="triton",
            **{name: COLUMN[of](value) for name, value in ids.items()},
        )[1],
        "scores": lambda of: functional.score_info_nce(
            query @ bank.T, query[:, 0], backend="triton", reduction="none",
            query_ids=COLUMN[of](ids["query_ids"]), key_ids=COLUMN[of](ids["bank_ids"]),
        ),
    }  # fmt: skip
    for name, call in calls.items():
        assert torch.equal(call("strided"), call("dense")), name


def test_lengths_of_a_table():
    regions, words = oracle.matrix(12, 8, 1).view(3, 4, 8), oracle.matrix(15, 8, 2).view(3, 5, 8)
    counts = torch.tensor([1, 4, 2]), torch.tensor([5, 2, 3])
    of_all, erased = [], []
    for column in COLUMN.values():
        lengths = [column(value) for value in counts]
        of_all.append(
            functional.cross_attention_similarity(
                regions, words, region_lengths=lengths[0], word_lengths=lengths[1],
                backend="triton",
            )
        )  # fmt: skip
        weights = words[..., 0].abs()
        erased.append(functional.attention_erase(weights, lengths=lengths[1], backend="triton")[1])
    assert torch.equal(*of_all) and torch.equal(*erased)


@pytest.mark.parametrize("behind", [False, True], ids=["attribute", "buffer"])
def test_buffers_of_a_table(behind):
    """Whether an attribute or a wrapper puts a column of something into the place of a buffer."""
    made = []
    for column in COLUMN.values():
        bank, sets = MemoryBank(4, 8, dtype=torch.int8), FragmentBank(4, 2, 8)
        for one, name in ((bank, "ids"), (bank, "row_scale"), (sets, "ids"), (sets, "lengths")):
            value = column(getattr(one, name))
            if behind:
                one._buffers[name] = value
            else:
                setattr(one, name, value)
        rows, ids = oracle.matrix(3, 8, 1), column(torch.tensor([3, 4, 5]))
        bank.enqueue(rows, ids, backend="triton")
        sets.enqueue(
            rows[:, None].expand(-1, 2, -1), column(torch.tensor([2, 1, 2])), ids,
            backend="triton",
        )  # fmt: skip
        assert bank.ids.tolist() == sets.ids.tolist() == [3, 4, 5, -1]
        assert sets.lengths.tolist() == [2, 1, 2, 0]
        made.append((bank.dense(), sets.rows))
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))
