"""Wrong settings and inputs of every twin: one sentence, before any bank is written."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sede_kernels.distributed import average_gradients, batches, gather_keys, gather_with_grad
from sede_kernels.integrations import bfan, scan, vse_infinity, vsepp
from sede_kernels.integrations.albef import RetrievalQueues
from sede_kernels.integrations.moco import MoCoQueue
from sede_kernels.integrations.open_clip import ClipLoss
from sede_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss
from tests.integrations.twins import DIM, OPTIONS, ROWS, SIZE, TWINS, WARMING, batch, fragments, run

NAN, INF = float("nan"), float("inf")
PARAMETER = nn.Parameter(torch.tensor(0.1))


def sentence(call: Callable[[], object]) -> str:
    """The message of a call that must fail, which is one sentence about the argument."""
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 260, text
    assert text.endswith("."), text
    return text


#: Which twins take a setting, under which name, and what it cannot be.
HINGES = ("vsepp-hardest", "vse_infinity", "scan", "bfan", "sgraf", "imram")
SIZED = (*HINGES, "open_clip", "sentence_transformers")
BAD_COUNTS = (-1, 2.5, "8", True, None, NAN)
BAD_POSITIVE = (0, -1.0, NAN, INF, "0.1", True, [0.1], PARAMETER)
BAD_WEIGHTS = (-1.0, NAN, INF, "2", None, torch.ones(2))
BAD_DTYPES = (torch.int32, torch.complex64, "float32", torch.float8_e4m3fn, None)
SETTINGS: list[tuple[tuple[str, ...], str, tuple[Any, ...]]] = [
    (SIZED, "bank_size", BAD_COUNTS),
    (SIZED, "bank_dtype", BAD_DTYPES),
    (("vsepp-all", "sgraf", "imram", "open_clip"), "dim", (0, *BAD_COUNTS)),
    (("sentence_transformers",), "dim", (0, -1, 2.5, "8", True)),
    (("scan", "bfan", "sgraf", "imram"), "regions", (0, *BAD_COUNTS)),
    (("scan", "bfan", "sgraf", "imram"), "max_words", (0, *BAD_COUNTS)),
    (("scan", "bfan", "sgraf", "imram"), "bank_dtype", (torch.int8,)),
    (("sgraf", "imram", "scan"), "score", (3, "sim")),
    (HINGES, "temperature", BAD_POSITIVE),
    ((*HINGES, "open_clip", "moco", "lightly"), "hardness", BAD_WEIGHTS),
    (tuple(WARMING), "start_step", (-1, 1.5, "2", True, None)),
    (("vsepp-all",), "measure", ("euclidean", 3)),
    (("open_clip",), "world_size", (0, *BAD_COUNTS)),
    (("open_clip",), "accum_freq", (0, *BAD_COUNTS)),
    (("open_clip",), "rank", BAD_COUNTS),
    (("open_clip",), "gather_with_grad", ("False", None, 2)),
    (("open_clip",), "tau_plus", (1.0, -0.1, NAN, "0")),
    (("open_clip",), "false_negatives", ("drop", None)),
    (("open_clip",), "backend", ("gpu", 3)),
    (("open_clip",), "margin", (NAN, "0.1")),
    (("open_clip",), "positive_focus", (-1.0, NAN)),
    (("open_clip",), "reduction", ("sum",)),
    (("open_clip",), "bank_sise", (8,)),
    (("sentence_transformers",), "scale", BAD_POSITIVE),
    (("sentence_transformers",), "hardness_strength", BAD_WEIGHTS),
    (("sentence_transformers",), "hardness_mode", ("hard", 1)),
    (("sentence_transformers",), "directions", ("query_to_doc", ("doc_to_doc",), ("up",))),
    (("sentence_transformers",), "partition_mode", ("split", None)),
    (("sentence_transformers",), "similarity_fct", ("euclid", 3)),
    (("sentence_transformers",), "gather_across_devices", ("no",)),
    (("sentence_transformers",), "ids_in_labels", ("no", None)),
    (("lightly",), "temperature", BAD_POSITIVE),
    (("lightly",), "gather_distributed", ("no", None)),
    (("lightly",), "memory_bank_size", (-1, 8, True, (8,), (8, 0), (-8, 4), (8.0, 4), "84", None)),
    (("lightly", ), "bank_dtype", BAD_DTYPES),
    (("moco", "albef"), "dtype", BAD_DTYPES),
]  # fmt: skip
CASES = [
    pytest.param(name, setting, values, id=f"{name}-{setting}")
    for names, setting, values in SETTINGS
    for name in names
]


@pytest.mark.parametrize(("name", "setting", "values"), CASES)
def test_a_wrong_setting_is_named_at_construction(
    name: str, setting: str, values: tuple[Any, ...]
) -> None:
    for value in values:
        assert setting in sentence(lambda value=value: TWINS[name].build(**{setting: value}))


@pytest.mark.parametrize("margin", [NAN, INF, "0.2", None, True], ids=str)
def test_a_wrong_margin_or_switch_is_named(margin: object) -> None:
    for build in (
        vsepp.ContrastiveLoss,
        lambda margin: vse_infinity.ContrastiveLoss(OPTIONS, margin),
        lambda margin: scan.ContrastiveLoss(OPTIONS, margin),
    ):
        assert "margin must be" in sentence(lambda build=build: build(margin))
    assert "max_violation must be True or False" in sentence(
        lambda: vsepp.ContrastiveLoss(max_violation="False")
    )


def test_positional_settings_of_the_queues_are_named() -> None:
    for wrong in BAD_POSITIVE:
        assert "MoCoQueue: T must be" in sentence(lambda wrong=wrong: MoCoQueue(8, 8, wrong))
    for wrong in (0, *BAD_COUNTS):
        assert "K must be an integer >= 1" in sentence(lambda wrong=wrong: MoCoQueue(8, wrong))
        assert "dim" in sentence(lambda wrong=wrong: MoCoQueue(wrong, 8))
        assert "queue_size must be" in sentence(lambda wrong=wrong: RetrievalQueues(8, wrong))
        assert "embed_dim" in sentence(lambda wrong=wrong: RetrievalQueues(wrong, 8))
    assert "model must be" in sentence(lambda: MultipleNegativesRankingLoss("bert"))


@pytest.mark.parametrize(
    ("build", "changes", "words"),
    [
        (scan.ContrastiveLoss, {"cross_attn": "both"}, "opt.cross_attn must be t2i or i2t"),
        (scan.ContrastiveLoss, {"raw_feature_norm": "l3norm"}, "raw_feature_norm"),
        (scan.ContrastiveLoss, {"agg_func": "Median"}, "agg_func must be one of"),
        (scan.ContrastiveLoss, {"lambda_softmax": 0.0}, "smoothing must be > 0"),
        (bfan.ContrastiveLoss, {"focal_type": "some"}, "focal_type must be equal or prob"),
        (bfan.ContrastiveLoss, {"lambda_softmax": NAN}, "smoothing must be > 0"),
    ],
)
def test_wrong_options_of_the_host_are_named_at_construction(
    build: Any, changes: dict[str, Any], words: str
) -> None:
    assert words in sentence(lambda: build(SimpleNamespace(**{**vars(OPTIONS), **changes})))


def test_missing_options_of_the_host_are_named() -> None:
    for build in (scan.ContrastiveLoss, bfan.ContrastiveLoss):
        assert "opt must have" in sentence(lambda build=build: build(SimpleNamespace()))
        assert "rule must be one of" in sentence(lambda build=build: build(OPTIONS, erase="least"))
    for build in (scan.ContrastiveLoss, vse_infinity.ContrastiveLoss):
        empty = SimpleNamespace(**{k: v for k, v in vars(OPTIONS).items() if k != "embed_size"})
        assert "embed_size" in sentence(lambda build=build, o=empty: build(o, 0.2, bank_size=4))


WRONG_IDS: list[tuple[Any, str]] = [
    (["a", "b", "c"], "got str 'a'; map names to integers first"),
    ("abc", "ids must be integers"),
    ([0.5, 1.0, 2.0], "got float 0.5"),
    ([True, False, True], "got bool True"),
    ([0, 1], r"must be (3,), one per row, got (2,)"),
    (torch.arange(4), r"must be (3,), one per row, got (4,)"),
    (torch.zeros(3, 2, dtype=torch.int64), r"must be (3,), one per row, got (3, 2)"),
    (torch.ones(3), "must be integers (int64), got torch.float32"),
    (np.ones(3), "must be integers, one per row, got float64"),
    ([0, 1, -1], "ids must be >= 0, got -1"),
    ([None, 1, 2], "ids must be integers"),
    ([1, 2, 2**70], "ids must be integers"),
    (7, "ids must be integers"),
]


@pytest.mark.parametrize(("ids", "words"), WRONG_IDS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("name", TWINS)
def test_wrong_ids_are_named_and_nothing_is_stored(name: str, ids: Any, words: str) -> None:
    module = TWINS[name].build()
    run(name, module, range(1))
    before = copy.deepcopy(module.state_dict())
    left, right, _ = batch(1)
    assert words in sentence(lambda: TWINS[name].step(module, left, right, ids))
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def wide(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows], dim=1)


#: What becomes of the left and right rows of a batch.
WRONG_ROWS: dict[str, Callable[[Tensor, Tensor], tuple[Any, Any]]] = {
    "one row less": lambda left, right: (left, right[:-1]),
    "another width": lambda left, right: (wide(left), wide(right)),
    "widths differ": lambda left, right: (left, wide(right)),
    "integers": lambda left, right: (left.detach().long(), right.detach().long()),
    "another device": lambda left, right: (left.detach().to("meta"), right.detach().to("meta")),
}


#: Where the test itself must build a score matrix, it needs rows that match.
ROW_CASES = [
    (name, wrong)
    for name in TWINS
    for wrong in WRONG_ROWS
    if name not in ("sgraf", "imram") or wrong not in ("widths differ", "one row less")
]


@pytest.mark.parametrize(("name", "wrong"), ROW_CASES)
def test_wrong_rows_are_named_and_nothing_is_stored(name: str, wrong: str) -> None:
    module = TWINS[name].build()
    run(name, module, range(1))
    before = copy.deepcopy(module.state_dict())
    left, right, ids = batch(1)
    sentence(lambda: TWINS[name].step(module, *WRONG_ROWS[wrong](left, right), ids))
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([1, 2], r"must be (3,), one per row, got (2,)"),
        ([1, 2, 3], "must lie in [0, 2], got 1 to 3"),
        ([1, 2, -1], "must lie in [0, 2], got -1 to 2"),
        ([1, 2, 0], "must lie in [1, 2], got 0 to 2"),
        ([1.0, 2.0, 1.5], "got float 1.0"),
        (torch.ones(3), "got torch.float32"),
        ("abc", "lengths must be integers"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["scan", "bfan"])
def test_wrong_lengths_are_named_and_nothing_is_stored(name: str, lengths: Any, words: str) -> None:
    module = TWINS[name].build()
    left, right, ids = batch(1)
    sets = fragments(left), fragments(right)
    assert words in sentence(lambda: module(*sets, lengths, ids))
    assert int(module.image_bank.count) == int(module.text_bank.count) == 0


def with_keys(name: str, keys: Any) -> Callable[[], object]:
    left, right, ids = batch(1)
    module = TWINS[name].build()

    def call() -> object:
        if name == "open_clip":
            return module(left, right, torch.tensor(10.0), ids=ids, keys=keys)
        if name == "vsepp-hardest":
            return module(left, right, ids, keys=keys)
        return module(fragments(left), fragments(right), [2] * ROWS, ids, keys=keys)

    return call


@pytest.mark.parametrize("name", ["vsepp-hardest", "open_clip", "scan"])
def test_wrong_keys_are_named(name: str) -> None:
    rows = torch.ones(ROWS, DIM)
    pairs: list[Any] = [3, (rows,), (rows, rows[:-1]), (rows[:-1], rows[:-1]), (rows, wide(rows))]
    if name == "scan":
        sets, lengths = torch.ones(ROWS, 2, DIM), torch.full((ROWS,), 2)
        pairs = [3, (sets, sets), (sets, sets, [9] * ROWS), (sets, sets[:-1], lengths),
                 (sets[:, :1], sets, lengths), (rows, sets, lengths)]  # fmt: skip
    for keys in pairs:
        sentence(with_keys(name, keys))


def clip(*arguments: Any) -> Callable[[], object]:
    return lambda: ClipLoss()(*arguments)


@pytest.mark.parametrize("value", [0.0, -1.0, NAN], ids=str)
def test_a_temperature_at_the_call_is_checked(value: float) -> None:
    left, right, ids = batch(1)
    for scale in (value, torch.tensor(value)):
        assert "logit_scale must be > 0" in sentence(clip(left, right, scale))
        assert "temp must be > 0" in sentence(
            lambda scale=scale: RetrievalQueues(DIM, SIZE)(
                left, right, left.detach(), right.detach(), ids, temp=scale
            )
        )
    assert "logit_scale must be a number or a tensor of one element" in sentence(
        clip(left, right, torch.ones(2))
    )


def queue_state(**changes: Any) -> dict[str, Any]:
    state = {
        "image_queue": torch.ones(DIM, SIZE),
        "text_queue": torch.ones(DIM, SIZE),
        "idx_queue": torch.full((1, SIZE), -100),
        "queue_ptr": torch.zeros(1, dtype=torch.int64),
    }
    return {**state, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_queue": torch.ones(SIZE, DIM)}, "the queue must be a floating tensor"),
        ({"image_queue": [1, 2]}, "the queue must be a floating tensor"),
        ({"idx_queue": torch.ones(1, SIZE)}, "idx_queue must be integers"),
        ({"idx_queue": torch.ones(3, dtype=torch.int64)}, "idx_queue must be"),
        ({"queue_ptr": torch.tensor([SIZE])}, f"must be below {SIZE}, got {SIZE}"),
        ({"queue_ptr": torch.tensor([-1])}, "must be an integer >= 0, got -1"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_a_host_that_does_not_fit_changes_nothing(
    changes: dict[str, Any], words: str
) -> None:
    queues = TWINS["albef"].build()
    run("albef", queues, range(1))
    before = copy.deepcopy(queues.state_dict())
    assert words in sentence(lambda: queues.load_host(queue_state(**changes)))
    after = queues.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert "has no x.image_queue" in sentence(lambda: queues.load_host(queue_state(), "x."))
    assert "state must be" in sentence(lambda: queues.load_host([1]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gather_keys([1.0]), "keys must be a tensor"),
        (lambda: gather_keys(torch.tensor(1.0)), "keys must be a tensor"),
        (lambda: gather_keys(torch.ones(2, 3), [0, 1]), "ids must be a torch.Tensor of integers"),
        (
            lambda: gather_keys(torch.ones(2, 3), torch.ones(2)),
            "ids must be integers (int64), got torch.float32",
        ),
        (lambda: gather_with_grad("rows"), "rows must be a tensor"),
        (lambda: batches(None), "rows must be a tensor"),
        (lambda: average_gradients(torch.ones(2)), "got a tensor"),
        (lambda: average_gradients([1.0]), "parameters must be tensors, got float"),
        (lambda: vsepp.i2t(np.ones((10, 4)), np.ones((10, 5))), "captions (C, D)"),
        (lambda: vsepp.i2t(np.ones((10, 4)), np.ones((10, 4)), npts=-2), "npts must be an integer"),
        (lambda: vsepp.i2t(["a"], ["b"]), "must be an array of numbers"),
        (lambda: vsepp.t2i(np.ones((5, 4)), np.ones((5, 4)), measure="l2"), "measure must be"),
        (lambda: scan.i2t(None, None, None, np.ones(5)), "sims must be"),
        (lambda: scan.t2i(None, None, None, "sims"), "sims must be an array of numbers"),
        (lambda: bfan.i2t(5, np.ones((2, 3))), "sims must be (N images, m N captions)"),
        (lambda: vse_infinity.compute_sim(np.ones(4), np.ones((2, 4))), "images must be (N, D)"),
        (
            lambda: scan.shard_xattn_t2i(np.ones((2, 3)), np.ones((2, 3, 4)), [3, 3], OPTIONS),
            "images must be (N, R, D)",
        ),
        (
            lambda: bfan.shard_xattn(np.ones((2, 3, 4)), np.ones((2, 3, 4)), [3], OPTIONS),
            "lengths must be (2,)",
        ),
        (
            lambda: bfan.shard_xattn(
                np.ones((2, 3, 4)), np.ones((2, 3, 4)), [3, 3], OPTIONS, shard_size=0
            ),
            "shard_size must be an integer >= 1",
        ),
    ],
)
def test_functions_name_what_is_wrong(call: Callable[[], object], words: str) -> None:
    assert words in sentence(call)
