"""Which backend is ahead, and what `auto` makes of it."""

import json

import torch

from benchmarks import ahead
from sede_kernels.backends import order, registry


def record(implementation: str, op: str, ms: float, dim: int, status: str = "ok") -> dict:
    return {
        "implementation": implementation, "op": op, "mode": "forward", "dtype": "bf16",
        "sizes": {"B": 64, "K": 4096, "D": dim}, "status": status, "median_ms": ms, "utc": "1",
        "device": "a GPU", "run": "1", "kind": "eager" if implementation == "eager" else "ours",
    }  # fmt: skip


FOUND = [
    record("sede triton", "info_nce", 2.0, 256),
    record("sede cuda", "info_nce", 1.0, 256),
    record("sede triton", "weighted_info_nce", 1.0, 128),
    record("sede cuda", "weighted_info_nce", 1.5, 128),
    record("sede triton", "hardest", 1.0, 1024),
    record("sede cuda", "hardest", 4.0, 1024),
    record("sede triton", "enqueue", 1.0, 256),
    record("sede cuda", "enqueue", 0.5, 256, "wrong"),
    record("eager", "info_nce", 9.0, 256),
]


def test_a_line_for_each_case_that_both_ran_right():
    lines = [ahead.line(both) for both in ahead.times(FOUND).values()]
    assert lines == [
        "cuda 2.00 x ahead: info_nce forward bf16 B=64 K=4,096 D=256",
        "triton 1.50 x ahead: weighted_info_nce forward bf16 B=64 K=4,096 D=128",
        "triton 4.00 x ahead: hardest forward bf16 B=64 K=4,096 D=1,024",
    ]


def test_rows_are_means_of_an_op_and_a_shape():
    assert ahead.rows(ahead.times(FOUND), "sm_90") == [
        {"device": "sm_90", "op": "hardest", "shape": "wide", "first": "triton"},
        {"device": "sm_90", "op": "info_nce", "shape": "narrow", "first": "cuda"},
    ]


def test_auto_follows_a_row_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "order.json"
    path.write_text(json.dumps(ahead.rows(ahead.times(FOUND), "sm_90")))
    tensor = torch.empty(2, 256, device="meta")
    monkeypatch.setattr(order, "FILE", path)
    monkeypatch.setattr(order, "_device_class", lambda index: "sm_90")
    order.rows.cache_clear()
    try:
        for op in ("info_nce", "info_nce_backward"):
            assert order.of(op, tensor) == ("cuda", "triton", "torch")
        assert order.of("info_nce", tensor.repeat(1, 2)) == order.USUAL
        assert order.of("hardest", tensor) == order.USUAL
        monkeypatch.setattr(order, "_device_class", lambda index: "sm_80")
        assert order.of("info_nce", tensor) == order.USUAL
    finally:
        order.rows.cache_clear()


def test_nothing_was_measured_on_a_gpu_yet():
    assert json.loads(order.FILE.read_text()) == []
    assert set(order.USUAL) <= set(registry.PACKAGES)
