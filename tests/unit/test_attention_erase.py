"""attention_erase: hand-written expectations, and a plain Python oracle for every rule."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sede_kernels import AttentionErase, attention_erase, cross_attention_similarity

RULES = [
    ("mean", None), ("prob", None), ("absolute", 0.2), ("relative", 0.5), ("topk", 2),
    ("quantile", 0.3),
]  # fmt: skip


def keep_by_hand(
    a: list[float], rule: str, t: float | None, low: bool, keep_min: int
) -> list[bool]:
    """The definition, fragment by fragment, in Python floats."""
    n = len(a)
    order = sorted(range(n), key=lambda i: (-a[i], i))
    if rule == "mean":
        high = [x > sum(a) / n for x in a]
    elif rule == "prob":
        root = sum(math.sqrt(x) for x in a)
        high = [x > sum(x**1.5 for x in a) / root if root else False for x in a]
    elif rule == "absolute":
        high = [x > t for x in a]
    elif rule == "relative":
        high = [x >= t * max(a) for x in a]
    elif rule == "topk":
        high = [i in order[: int(t)] for i in range(n)]
    else:
        ranked, position = sorted(a), t * (n - 1)
        below = math.floor(position)
        above = min(below + 1, n - 1)
        cut = ranked[below] + (position - below) * (ranked[above] - ranked[below])
        high = [x >= cut for x in a]
    keep = high if low else [not x for x in high]
    for i in order if low else sorted(range(n), key=lambda i: (a[i], i)):
        if sum(keep) < min(keep_min, n):
            keep[i] = True
    return keep


@pytest.mark.parametrize(
    "rule, threshold, expected",
    [
        ("mean", None, [True, False, False, True]),
        ("prob", None, [True, False, False, False]),
        ("absolute", 0.1, [True, False, True, True]),
        ("relative", 0.25, [True, False, True, True]),
        ("topk", 1, [True, False, False, False]),
        ("quantile", 0.5, [True, False, False, True]),
    ],
)
def test_hand_written_masks(rule, threshold, expected, backend) -> None:
    attention = torch.tensor([0.5, 0.05, 0.15, 0.3])
    out, mask = attention_erase(attention, rule=rule, threshold=threshold, backend=backend)
    assert mask.tolist() == expected
    kept = attention * mask
    torch.testing.assert_close(out, kept / kept.sum())
    _, high = attention_erase(
        attention, rule=rule, threshold=threshold, erase="high", backend=backend
    )
    assert high.tolist() == [not x for x in expected]


@pytest.mark.parametrize("rule, threshold", RULES, ids=[r for r, _ in RULES])
@pytest.mark.parametrize("low", [True, False], ids=["low", "high"])
def test_against_the_definition(rule, threshold, low, backend) -> None:
    # Multiples of 1/64: sums and ties are exact in fp32, so masks must agree to the fragment.
    for length, keep_min in itertools.product([1, 2, 5, 36], [1, 3]):
        attention = torch.randint(0, 20, (40, length)) / 64
        lengths = torch.randint(1, length + 1, (40,))
        out, mask = attention_erase(
            attention, rule=rule, threshold=threshold, erase="low" if low else "high",
            keep_min=keep_min, lengths=lengths, backend=backend,
        )  # fmt: skip
        for row in range(40):
            n = int(lengths[row])
            a = attention[row, :n].tolist()
            if rule == "prob" and len(set(a)) > 1:
                root = sum(math.sqrt(x) for x in a)
                cut = sum(x**1.5 for x in a) / root
                if min(abs(x - cut) for x in a) < 1e-6:
                    continue  # a true tie of irrational sums is rounding's to decide
            elif rule == "prob":
                continue
            want = keep_by_hand(a, rule, threshold, low, keep_min)
            assert mask[row].tolist() == want + [False] * (length - n), (row, a)
            total = sum(x for x, k in zip(a, want, strict=True) if k)
            scale = 1 / total if total else 1.0
            expected = [x * k * scale for x, k in zip(a, want, strict=True)] + [0.0] * (length - n)
            torch.testing.assert_close(out[row], torch.tensor(expected))


def test_bfan_prob_closed_form_equals_the_pairwise_sum() -> None:
    """BFAN (Liu et al. 2019): keep j with sum_i f(a_i) (a_j - a_i) > 0 for f = sqrt."""
    attention = torch.rand(50, 23, dtype=torch.float64).softmax(-1)
    difference = attention[:, :, None] - attention[:, None, :]
    keep = (attention.sqrt()[:, None, :] * difference).sum(-1) > 0
    assert torch.equal(attention_erase(attention, rule="prob")[1], keep)


@pytest.mark.parametrize("rule, threshold", RULES, ids=[r for r, _ in RULES])
def test_uniform_single_zero_and_empty_rows(rule, threshold, backend) -> None:
    for row in (torch.full((7,), 1 / 7), torch.ones(1), torch.zeros(5)):
        for erase in ("low", "high"):
            out, mask = attention_erase(
                row, rule=rule, threshold=threshold, erase=erase, backend=backend
            )
            assert mask.any()
            assert torch.isfinite(out).all()
    out, mask = attention_erase(
        torch.rand(2, 4), rule=rule, threshold=threshold, lengths=torch.tensor([0, 2]),
        backend=backend,
    )  # fmt: skip
    assert not mask[0].any() and not mask[1, 2:].any() and torch.equal(out[0], torch.zeros(4))
    for shape in ((0, 5), (3, 0)):
        out, mask = attention_erase(
            torch.zeros(shape), rule=rule, threshold=threshold, backend=backend
        )
        assert out.shape == mask.shape == shape


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("rule, threshold", RULES, ids=[r for r, _ in RULES])
def test_gradients(rule, threshold, renormalize, backend) -> None:
    attention = torch.rand(3, 4, 9, dtype=torch.float64).softmax(-1).requires_grad_()
    lengths = torch.randint(1, 10, (3, 4))
    options = {"rule": rule, "threshold": threshold, "renormalize": renormalize, "lengths": lengths}
    assert torch.autograd.gradcheck(
        lambda a: attention_erase(a, backend="torch", **options)[0], attention
    )
    single = attention.detach().float().requires_grad_()
    weight = torch.rand(3, 4, 9)
    (got,) = torch.autograd.grad(
        (attention_erase(single, backend=backend, **options)[0] * weight).sum(), single
    )
    truth = attention_erase(attention, backend="reference", **options)[0] * weight
    (want,) = torch.autograd.grad(truth.sum(), attention)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)


def test_a_nan_row_stays_in_its_row(backend) -> None:
    attention = torch.rand(3, 6)
    clean = attention.clone()
    attention[1, 2] = float("nan")
    out, mask = attention_erase(attention, backend=backend)
    want, want_mask = attention_erase(clean, backend=backend)
    assert torch.equal(out[[0, 2]], want[[0, 2]])
    assert torch.equal(mask[[0, 2]], want_mask[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_keeps_its_dtype_and_masks_exactly(dtype, backend) -> None:
    attention = torch.rand(64, 36).softmax(-1).to(dtype)
    out, mask = attention_erase(attention, rule="relative", threshold=0.5, backend=backend)
    want, want_mask = attention_erase(
        attention.double(), rule="relative", threshold=0.5, backend="reference"
    )
    assert out.dtype == dtype
    assert torch.equal(mask, want_mask)
    torch.testing.assert_close(out.double(), want, rtol=1e-2, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.sampled_from([r for r in RULES if r[0] != "prob"]),
    st.booleans(),
    st.integers(1, 4),
)
def test_property_keep_min_and_mass(values, rule, low, keep_min) -> None:
    attention = torch.tensor(values) / 32
    out, mask = attention_erase(
        attention, rule=rule[0], threshold=rule[1], erase="low" if low else "high",
        keep_min=keep_min,
    )  # fmt: skip
    assert int(mask.sum()) >= min(keep_min, len(values))
    assert mask.tolist() == keep_by_hand(attention.tolist(), *rule, low, keep_min)
    assert float(out.sum()) == pytest.approx(1.0 if (attention * mask).sum() > 0 else 0.0)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"rule": "best"}, ValueError, "rule must be one of mean, prob"),
        ({"rule": "topk"}, ValueError, "rule 'topk' needs threshold, how many"),
        ({"rule": "topk", "threshold": 1.5}, ValueError, "must be an integer, got 1.5"),
        ({"rule": "mean", "threshold": 0.1}, ValueError, "rule 'mean' takes no threshold"),
        ({"rule": "quantile", "threshold": 1.5}, ValueError, r"must be in \[0, 1\], got 1.5"),
        ({"erase": "middle"}, ValueError, "erase must be one of low, high"),
        ({"keep_min": 0}, ValueError, "keep_min must be an integer >= 1, got 0"),
        (
            {"lengths": torch.tensor([1])},
            ValueError,
            r"lengths must be \(2,\), one per row, got \(1,\)",
        ),
        ({"lengths": torch.tensor([1, 9])}, ValueError, r"must lie in \[0, 4\], got 1 to 9"),
        ({"lengths": [1, 2]}, TypeError, "must be a torch.Tensor, got list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(options, error, message) -> None:
    with pytest.raises(error, match=message):
        attention_erase(torch.rand(2, 4), **options)
    with pytest.raises(TypeError, match="attention must be float32"):
        attention_erase(torch.ones(2, 4, dtype=torch.long))


def test_module_twin() -> None:
    attention = torch.rand(3, 7)
    module = AttentionErase(rule="quantile", threshold=0.25, erase="high", keep_min=2)
    want = attention_erase(attention, rule="quantile", threshold=0.25, erase="high", keep_min=2)
    for got, expected in zip(module(attention), want, strict=True):
        assert torch.equal(got, expected)
    with pytest.raises(ValueError, match="needs threshold"):
        AttentionErase(rule="absolute")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("erase", "both", "erase must be one of low, high, got 'both'"),
        ("renormalize", "yes", "renormalize must be True or False, got 'yes'"),
        ("keep_min", 0, "keep_min must be an integer >= 1, got 0"),
        ("rule", "best", "rule must be one of mean, prob"),
    ],
)
def test_a_setting_changed_after_construction_is_checked_again(name, value, words) -> None:
    how = AttentionErase()
    setattr(how, name, value)
    with pytest.raises((TypeError, ValueError), match=f"cross_attention_similarity: {words}"):
        cross_attention_similarity(torch.ones(1, 3, 4), torch.ones(1, 2, 4), erase=how)
