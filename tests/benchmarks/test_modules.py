"""``sede bench modules`` on a small generated folder."""

import json

import numpy as np

from benchmarks import modules, run
from benchmarks.case import BOTH, Case
from benchmarks.operations.steps import write_part


def test_every_variant_is_timed_beside_the_base(tmp_path, capsys):
    case = Case("train_step_bfan", BOTH, "fp32", {"B": 20, "R": 6, "F": 5})
    data, out = tmp_path / "set_precomp", tmp_path / "new" / "modules.json"
    data.mkdir()
    for part in ("train", "dev", "test"):
        write_part(data, part, case, np.random.default_rng(3))
    words = f"modules --models vsrn,bfan --batches 4 --dim 16 --steps 3 --data {data} --out {out}"
    assert run.main(words.split()) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [(c["model"], c["batch"]) for c in found["cases"]] == [("vsrn", 4), ("bfan", 4)]
    for one in found["cases"]:
        assert list(one["steps"]) == list(modules.VARIANTS)
        assert one["steps"]["base"]["ratio"] == 1
        assert all(len(s["ratios"]) == 3 and s["ms"] > 0 for s in one["steps"].values())
        assert f"| `{one['model']}` 4 | {one['steps']['base']['ms']:.1f} |" in printed
    assert found["variants"]["base"] == {}
