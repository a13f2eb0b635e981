"""Ring writes against a list that is written key by key, in Python and NumPy."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sede_kernels as sede
from tests.property import cases

EMPTY, ANONYMOUS = -1, -2


@st.composite
def batches(draw: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(draw(cases.seeds))
    dim = draw(cases.dims)
    out = []
    for _ in range(draw(st.integers(1, 5))):
        rows = draw(st.integers(0, 30))
        dtype = draw(st.sampled_from(cases.FLOATS))
        layout = draw(st.sampled_from(cases.LAYOUTS))
        keys = cases.matrix(rng, rows, dim, dtype, layout, draw(cases.lengths_of_rows))
        for row in rng.integers(max(rows, 1), size=draw(st.sampled_from([0, 0, 3]))):
            if rows and layout != "one row repeated":
                keys[row, rng.integers(dim)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        ids = torch.from_numpy(rng.integers(0, 9, size=rows)) if draw(st.booleans()) else None
        out.append({"keys": keys, "ids": ids, "dim": dim})
    return out


@pytest.mark.parametrize("backend", cases.backends())
@given(
    stream=batches(),
    size=st.integers(1, 40),
    dtype=st.sampled_from([*cases.FLOATS, torch.int8]),
    normalize=st.booleans(),
)
def test_memory_bank(
    backend: str, stream: list[dict[str, Any]], size: int, dtype: torch.dtype, normalize: bool
) -> None:
    dim = stream[0]["dim"]
    bank = sede.MemoryBank(size, dim, dtype=dtype, normalize=normalize)
    rows, ids = np.zeros((size, dim)), np.full(size, EMPTY)
    written = rejected = 0
    for batch in stream:
        before = batch["keys"].clone()
        bank.enqueue(batch["keys"], batch["ids"], backend=backend)
        assert torch.equal(batch["keys"].nan_to_num(), before.nan_to_num())
        total = len(before)
        for n, key in enumerate(cases.exact(batch["keys"])):
            slot, norm = written % size, np.linalg.norm(key)
            written += 1
            if not np.isfinite(key).all():
                rows[slot], ids[slot] = 0.0, EMPTY
                rejected += n >= total - size  # what the same call overwrites is not looked at
                continue
            rows[slot] = key / norm if normalize and norm > 0 else key
            ids[slot] = ANONYMOUS if batch["ids"] is None else int(batch["ids"][n])
    assert bank.ids.tolist() == ids.tolist()
    assert int(bank.ptr) == written % size
    assert int(bank.count) == len(bank) == int((ids != EMPTY).sum())
    assert int(bank.rejected) == rejected
    stored = cases.exact(bank.rows)
    if dtype == torch.int8:
        assert bank.row_scale is not None and bank.row_scale.dtype == torch.float32
        scale = cases.exact(bank.row_scale)[:, None]
        largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-5, atol=1e-9)
        assert (np.abs(stored * scale - rows) <= 0.501 * scale + 1e-7).all()
    else:
        # A key of unit length up to 1e-6 in its square is stored as it came.
        room = 4 * max(cases.ROUNDOFF[dtype], 2.0**-24) + 6e-7 * normalize
        np.testing.assert_allclose(stored, rows, rtol=room, atol=1e-7)


@given(
    seed=cases.seeds,
    size=st.integers(1, 12),
    longest=st.integers(1, 9),
    dtype=st.sampled_from(cases.FLOATS),
    counts=st.lists(st.integers(0, 15), min_size=1, max_size=4),
)
def test_fragment_bank(
    seed: int, size: int, longest: int, dtype: torch.dtype, counts: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    bank = sede.FragmentBank(size, longest, 3, dtype=dtype)
    rows, lengths = np.zeros((size, longest, 3)), np.zeros(size, dtype=int)
    ids, written = np.full(size, EMPTY), 0
    for total in counts:
        width = int(rng.integers(1, longest + 1))
        keys = torch.from_numpy(rng.normal(size=(total, width, 3))).to(dtype)
        some = rng.integers(1, width + 1, size=total)
        known = rng.integers(0, 9, size=total)
        bank.enqueue(keys, torch.from_numpy(some), torch.from_numpy(known))
        for n in range(total):
            slot = written % size
            rows[slot] = 0.0
            rows[slot, : some[n]] = cases.exact(keys)[n, : some[n]]
            lengths[slot], ids[slot] = some[n], known[n]
            written += 1
    np.testing.assert_array_equal(cases.exact(bank.rows), rows)
    assert bank.lengths.tolist() == lengths.tolist()
    assert bank.ids.tolist() == ids.tolist()
    assert (int(bank.ptr), len(bank)) == (written % size, min(written, size))
