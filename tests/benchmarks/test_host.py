"""``sede bench host``: the launches of the losses, and a record of a few calls."""

import json

import pytest
import torch

from benchmarks import host, run, train_step
from sede_kernels.backends.cpu import _native

pytestmark = pytest.mark.skipif(
    _native.unavailable_reason() is not None, reason="the native module is not built"
)


@pytest.mark.parametrize("name", host.CASES)
def test_a_loss_launches_no_more_than_is_asked(name) -> None:
    build, _, (forward, backward) = host.CASES[name]
    found = host.launches(build)
    assert len(found[0]) <= forward, found[0]
    assert len(found[1]) <= backward, found[1]
    assert [ops.count("native::info_nce") for ops in found] == [1, 0]
    assert [ops.count("native::info_nce_backward") for ops in found] == [0, 1]


def test_the_counter_sees_work_and_no_views() -> None:
    x = torch.ones(3, 4)
    with host.counted() as counter:
        ((x[:2].T.T + 1).view(-1).detach() * 2).sum()
    assert counter.names == ["aten::add", "aten::mul", "aten::sum"]


def test_a_record_of_a_few_calls(tmp_path, capsys) -> None:
    out = tmp_path / "new" / "host.json"
    assert run.main(["host", "--rounds", "2", "--calls", "2", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    steps = {f"dispatched_ops_train_step_{name}" for name in train_step.CASES}
    assert set(record["cases"]) == steps | {
        f"{kind}_{name}" for kind in ("host_time", "dispatched_ops") for name in host.CASES
    }
    assert all(0 < record["cases"][name]["of_sede"] < 30 for name in steps)
    for name in host.CASES:
        assert record["cases"][f"host_time_{name}"]["ratio"] > 0
    assert "`host_time_sede_loss`" in capsys.readouterr().out
