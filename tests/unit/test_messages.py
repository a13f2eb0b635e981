"""Wrong arguments of the public functions and modules: one sentence that names the argument."""

import inspect

import numpy as np
import pytest
import torch

import sede_kernels as sede

Q = torch.eye(4)
NAN, INF = float("nan"), float("inf")

SETTINGS = {
    "temperature": [0.0, -1.0, NAN, INF, 1e-40, "0.1", True, None, [0.1]],
    "hardness": [-1.0, NAN, INF, 1e7, "5", False],
    "positive_focus": [-0.1, NAN, INF, "1", True],
    "tau_plus": [-0.1, 1.0, 1.5, NAN, "0"],
    "margin": [NAN, INF, "0.1", True],
    "false_negatives": ["drop", None, 3],
    "reduction": ["avg", None, True],
    "normalize_weights": [1, "yes", None],
    "detach_weights": [0, "no"],
    "in_batch_negatives": ["yes", 1, None],
    "unit_length": [1, "yes"],
    "backend": ["gpu", "", None],
}
CASES = [
    pytest.param(name, value, id=f"{name}-{value!r}")
    for name, values in SETTINGS.items()
    for value in values
    if (name, value) != ("backend", "")
]


def said(error: pytest.ExceptionInfo[Exception], argument: str) -> None:
    message = str(error.value)
    assert argument in message, message
    assert "\n" not in message
    assert message.endswith("."), message


@pytest.mark.parametrize(("name", "value"), CASES)
def test_settings_of_a_loss(name, value) -> None:
    """The function, its module and the two-bank loss say the same, the modules at construction."""
    for call in (
        lambda: sede.weighted_info_nce(Q, Q, Q, **{name: value}),
        lambda: sede.symmetric_info_nce(Q, Q, Q, Q, Q, Q, **{name: value}),
        lambda: sede.WeightedInfoNCE(**{name: value}),
        lambda: sede.SEDELoss(4, 4, **{name: value}),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        said(error, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{value!r}")
        for name, values in SETTINGS.items()
        for value in values
        if name in inspect.signature(sede.score_info_nce).parameters
        if (name, value) != ("backend", "")
    ],
)
def test_settings_of_a_loss_of_scores(name, value) -> None:
    for backend in ("torch", "reference"):
        settings = {"backend": backend, name: value}
        for call in (
            lambda given=settings: sede.score_info_nce(Q, **given),
            lambda given=settings: sede.ScoreInfoNCE(**given),
        ):
            with pytest.raises((TypeError, ValueError)) as error:
                call()
            said(error, name)


@pytest.mark.parametrize(
    ("given", "argument", "hint"),
    [
        ({"scores": [[1.0]]}, "scores", "torch.Tensor"),
        ({"scores": Q[0]}, "scores", "(B, N)"),
        ({"scores": Q.long()}, "scores", "float"),
        ({"scores": Q[:, :3]}, "scores", "pass positive"),
        ({"positive": 0.5}, "positive", "torch.Tensor"),
        ({"positive": Q}, "positive", "(B,)"),
        ({"positive": Q[0, :3]}, "positive", "(4,)"),
        ({"positive": Q[0].long()}, "positive", "float"),
        ({"valid": [True]}, "valid", "torch.Tensor"),
        ({"valid": Q}, "valid", "bool (4, 4)"),
        ({"valid": Q[:3] > 0}, "valid", "bool (4, 4)"),
        ({"query_ids": torch.zeros(3, dtype=torch.long)}, "query_ids", "(4,)"),
        ({"key_ids": torch.zeros(3, dtype=torch.long)}, "key_ids", "(4,)"),
        ({"key_ids": Q[0]}, "key_ids", "integers"),
        (
            {"scores": Q.repeat(1, 2), "query_ids": torch.arange(4)},
            "query_ids",
            "pass key_ids",
        ),
        ({"false_negatives": "positive"}, "false_negatives", "pass query_ids"),
        ({"valid": (Q > 0).to("meta")}, "valid", "move one of them"),
    ],
    ids=str,
)
def test_tensors_of_a_loss_of_scores(given, argument, hint) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        sede.score_info_nce(**{"scores": Q, **given})
    said(error, argument)
    assert hint in str(error.value), str(error.value)


IDS = [
    pytest.param([0, 1, 2, 3], "torch.as_tensor", id="list"),
    pytest.param(("a", "b", "c", "d"), "number strings first", id="strings"),
    pytest.param(np.arange(4), "torch.as_tensor", id="numpy"),
    pytest.param(torch.zeros(4), "integers", id="float"),
    pytest.param(torch.zeros(4, dtype=torch.bool), "integers", id="bool"),
    pytest.param(torch.zeros(3, dtype=torch.long), "(4,)", id="length"),
    pytest.param(7, "torch.Tensor of integers", id="number"),
]


@pytest.mark.parametrize(("ids", "hint"), IDS)
def test_ids_are_named_for_what_they_are(ids, hint) -> None:
    bank = sede.MemoryBank(4, 4)
    calls = [
        lambda: sede.weighted_info_nce(Q, Q, Q, query_ids=ids),
        lambda: sede.weighted_info_nce(Q, Q, Q, bank_ids=ids),
        lambda: sede.symmetric_info_nce(Q, Q, Q, Q, Q, Q, ids=ids),
        lambda: sede.score_info_nce(Q, query_ids=ids),
        lambda: sede.score_info_nce(Q, key_ids=ids),
        lambda: sede.bank_lse(Q, Q, 1.0, query_ids=ids),
        lambda: sede.hardest_negatives(Q, Q, bank_ids=ids),
        lambda: bank.enqueue(Q, ids),
    ]
    if hint != "torch.as_tensor":  # the module takes lists and arrays of integers
        calls.append(lambda: sede.SEDELoss(4, 4)(Q, Q, ids=ids))
    for call in calls:
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        said(error, "ids")
        assert hint in str(error.value), str(error.value)
    assert len(bank) == 0


SIMILARITY = {
    "direction": ["i2i", None],
    "smoothing": [0.0, -1.0, NAN, "9", True],
    "aggregate": ["median", None],
    "aggregate_scale": [0.0, INF, "6"],
    "erase": ["lowest", 3, True],
    "backend": ["gpu"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{value!r}")
        for name, values in SIMILARITY.items()
        for value in values
    ],
)
def test_settings_of_a_similarity(name, value) -> None:
    sets = torch.ones(2, 3, 4)
    for call in (
        lambda: sede.cross_attention_similarity(sets, sets, **{name: value}),
        lambda: sede.cross_attention_pairs(sets[:, None], sets[:, None], **{name: value}),
        lambda: sede.CrossAttentionSimilarity(**{name: value}),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        said(error, "rule" if value == "lowest" else name)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"rule": "median"}, "rule"),
        ({"rule": "mean", "threshold": 0.1}, "threshold"),
        ({"rule": "topk"}, "threshold"),
        ({"rule": "topk", "threshold": 1.5}, "threshold"),
        ({"rule": "topk", "threshold": "2"}, "threshold"),
        ({"rule": "quantile", "threshold": 2.0}, "threshold"),
        ({"rule": "relative", "threshold": NAN}, "threshold"),
        ({"keep_min": 0}, "keep_min"),
        ({"keep_min": 1.0}, "keep_min"),
        ({"erase": "middle"}, "erase"),
        ({"renormalize": 1}, "renormalize"),
        ({"backend": "gpu"}, "backend"),
    ],
    ids=str,
)
def test_settings_of_erasing(settings, argument) -> None:
    for call in (
        lambda: sede.attention_erase(torch.ones(2, 3), **settings),
        lambda: sede.AttentionErase(**settings),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            call()
        said(error, argument)


def test_an_unknown_default_backend_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEDE_BACKEND", "gpu")
    for call in (
        lambda: sede.weighted_info_nce(Q, Q, Q),
        lambda: sede.hardest_negatives(Q, Q),
        lambda: sede.attention_erase(Q),
        lambda: sede.MemoryBank(4, 4).enqueue(Q),
    ):
        with pytest.raises(ValueError) as error:
            call()
        said(error, "SEDE_BACKEND")


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "3", None])
def test_how_many_hardest(k) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        sede.hardest_negatives(Q, Q, k)
    said(error, "k must be")


def test_a_count_that_no_integer_holds() -> None:
    with pytest.raises(ValueError) as error:
        sede.hardest_negatives(Q, Q, 1 << 63)
    said(error, "k must be below 2^63, got 9223372036854775808")


@pytest.mark.parametrize(
    ("arguments", "settings", "argument"),
    [
        ((0, 4), {}, "size"),
        ((4.0, 4), {}, "size"),
        ((4, True), {}, "dim"),
        (("4", 4), {}, "size"),
        ((4, 4), {"dtype": torch.int16}, "dtype"),
        ((4, 4), {"dtype": "float32"}, "dtype"),
    ],
    ids=str,
)
def test_shape_and_dtype_of_a_bank(arguments, settings, argument) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        sede.MemoryBank(*arguments, **settings)
    said(error, argument)


LAYOUTS = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "csr": lambda tensor: tensor.to_sparse_csr(),
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor.unbind())),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_tensors_that_are_not_dense(layout, backend) -> None:
    odd = LAYOUTS[layout](Q)
    calls = {
        "query": lambda: sede.weighted_info_nce(odd, Q, Q, backend=backend),
        "positive": lambda: sede.weighted_info_nce(Q, odd, Q, backend=backend),
        "bank": lambda: sede.weighted_info_nce(Q, Q, odd, backend=backend),
        "text_key": lambda: sede.symmetric_info_nce(Q, Q, Q, odd, Q, Q, backend=backend),
        "scores": lambda: sede.score_info_nce(odd, backend=backend),
        "valid": lambda: sede.score_info_nce(Q, valid=odd, backend=backend),
        "attention": lambda: sede.attention_erase(odd, backend=backend),
        "regions": lambda: sede.cross_attention_similarity(odd, Q[None], backend=backend),
        "keys": lambda: sede.MemoryBank(4, 4).enqueue(odd, backend=backend),
        "FragmentBank.enqueue: keys": lambda: sede.FragmentBank(4, 4, 4).enqueue(odd),
    }
    for argument, call in calls.items():
        with pytest.raises(TypeError, match="must be a dense tensor, got") as error:
            call()
        said(error, argument)
