"""The benchmark's own machinery on tiny sizes: checks, memory, timing, figures, the GPU script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import machine, measure, records, run, table
from benchmarks.case import BOTH, FORWARD, Case, Variant
from benchmarks.check import Checker
from benchmarks.limits import Limits, Rate
from benchmarks.memory import Memory, out_of_memory
from benchmarks.operations import exact
from benchmarks.operations.bank import BankLoss, LossOptions
from benchmarks.peers import bank as peers
from benchmarks.registry import GRIDS, OPERATIONS, find
from benchmarks.resume import Progress
from benchmarks.runner import Runner, shrunk
from sede_kernels import reference
from tests.benchmarks.test_records import record

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
LIMITS = Limits(dict.fromkeys(("fp32", "bf16", "int8"), Rate(50.0, "test")), Rate(10.0, "test"))


def _generator():
    return torch.Generator().manual_seed(torch.initial_seed())


def _runner(tmp_path, **changes):
    out = tmp_path / "out.jsonl"
    settings = {"seed": 3, "budget_s": 0.01, "memory": None, "progress": Progress(out, "r")}
    return Runner(CPU, LIMITS, out, **(settings | changes))


def _tiny_cases():
    found = {}
    for case in GRIDS[("cpu", False)]():
        small = shrunk(case)
        found[small.title] = small
    # Compilation takes seconds a case; torch.compile has a test of its own.
    return list(found.values())


@pytest.mark.parametrize("case", _tiny_cases(), ids=lambda c: c.title.replace(" ", "_"))
def test_every_plain_variant_agrees_with_fp64(case):
    operation = OPERATIONS[case.op]
    inputs = operation.draw(case, CPU, _generator())
    checker = Checker(operation, case, inputs)
    ran = 0
    for variant in operation.variants(case):
        left_out = "compile" in variant.name or variant.name.startswith("sede")
        if left_out and variant.name != "sede torch":
            continue
        if variant.absent(case, CPU) is None:
            verdict = checker.verdict(variant, variant.build(case, [inputs])(0))
            assert verdict.passed, (variant.name, verdict)
            ran += 1
    assert ran


@pytest.mark.parametrize(
    ("options", "masked"),
    [((0, True), False), ((5, True), False), ((5, False), False), ((5, False), True)],
    ids=["plain", "detached", "attached", "attached-masked"],
)
@pytest.mark.parametrize("normalizes", [False, True], ids=["as-is", "normalizes"])
def test_closed_form_equals_the_reference(options, masked, normalizes, monkeypatch):
    monkeypatch.setattr(exact, "_CHUNK_ELEMENTS", 1)  # chunks of 256 rows
    draw = _generator()
    query, positive, bank = (
        torch.nn.functional.normalize(torch.randn(n, 9, generator=draw, dtype=torch.float64))
        for n in (4, 4, 600)
    )
    ids = torch.arange(4), torch.arange(600) % 7
    leaf = query.clone().requires_grad_()
    loss = reference.weighted_info_nce(
        torch.nn.functional.normalize(leaf) if normalizes else leaf,
        positive,
        bank,
        hardness=options[0],
        detach_weights=options[1],
        query_ids=ids[0] if masked else None,
        bank_ids=ids[1] if masked else None,
    )
    (grad,) = torch.autograd.grad(loss, leaf)
    settings = exact.Exact(0.07, *options, normalizes)
    found = exact.exact_loss(query, positive, bank, None, ids if masked else None, settings)
    torch.testing.assert_close(found, (loss.detach(), grad), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [(0, True, True), (5, True, True), (5, False, True)])
def test_chunked_floor_crosses_chunks(options, monkeypatch):
    monkeypatch.setitem(peers._CHUNK_ELEMENTS, "cpu", 1)  # chunks of 512 rows
    case = Case("info_nce", BOTH, "fp32", {"B": 5, "K": 1300, "D": 24})
    operation = BankLoss(LossOptions(*options))
    inputs = operation.draw(case, CPU, _generator())
    variant = find(operation.variants(case), "chunked torch")
    checker = Checker(operation, case, inputs)
    assert checker.verdict(variant, variant.build(case, [inputs])(0)).passed


def _loss_case(**changes):
    return Case("info_nce", FORWARD, "fp32", {"B": 3, "K": 64, "D": 16}, **changes)


def _with_variant(monkeypatch, variant):
    operation = OPERATIONS["info_nce"]
    monkeypatch.setattr(type(operation), "variants", lambda self, case: [variant])


def test_a_wrong_result_gets_no_time(tmp_path, monkeypatch):
    wrong = Variant("liar", "peer", lambda case, sets: lambda turn: {"loss": torch.tensor(9.0)})
    _with_variant(monkeypatch, wrong)
    (found,) = _runner(tmp_path).case(_loss_case())
    assert (found["status"], found["median_ms"], found["passed"]) == ("wrong", None, False)
    assert records.read([tmp_path / "out.jsonl"]) == ([found], [])


@pytest.mark.parametrize(
    ("error", "status"),
    [
        pytest.param(MemoryError("no"), "out of memory", id="host"),
        pytest.param(torch.cuda.OutOfMemoryError("CUDA out of memory"), "out of memory", id="cuda"),
        pytest.param(RuntimeError("boom\nmore"), "error", id="other"),
    ],
)
def test_a_failing_variant_becomes_a_record(tmp_path, monkeypatch, error, status):
    def build(case, sets):
        raise error

    _with_variant(monkeypatch, Variant("fails", "peer", build))
    (found,) = _runner(tmp_path).case(_loss_case())
    assert (found["status"], found["median_ms"]) == (status, None)
    assert found["reason"]


def test_absences_say_why_once_an_op(tmp_path, monkeypatch):
    gone = Variant("gone", "peer", lambda case, sets: None, lambda case, device: "not installed")
    _with_variant(monkeypatch, gone)
    runner = _runner(tmp_path)
    (found,) = runner.case(_loss_case())
    assert (found["status"], found["reason"]) == ("absent", "not installed")
    assert runner.case(_loss_case()) == []


def test_no_foreign_package_is_imported_at_collection():
    code = (
        "import sys, benchmarks.run, benchmarks.test_speed\n"
        "bad = {'lightly', 'cut_cross_entropy', 'liger_kernel', 'quack', 'memeff', 'inf_cl',\n"
        "       'pytorch_metric_learning', 'torchvision', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment, timeout=120)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux /proc")
def test_memory_in_an_own_process_sees_what_eager_allocates():
    case = Case("info_nce", FORWARD, "fp32", {"B": 64, "K": 32768, "D": 16})
    memory = Memory()
    eager, chunked = memory.peaks(case, ["eager", "chunked torch"]).values()
    logits_mb = 64 * 32768 * 4 / 1e6
    assert eager.status == chunked.status == "ok"
    assert eager.extra_mb > 2 * logits_mb
    assert chunked.extra_mb < logits_mb
    memory.limit_bytes = 12_000_000
    starved = memory.peaks(case, ["eager"])["eager"]
    assert (starved.status, starved.extra_mb) == ("out of memory", None)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux /proc")
def test_the_memory_process_loads_our_files_whatever_the_search_path(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(ROOT), *sys.path])
    case = Case("info_nce", FORWARD, "fp32", {"B": 4, "K": 64, "D": 16})
    assert Memory().peaks(case, ["eager"])["eager"].status == "ok"


def test_out_of_memory_is_told_from_other_errors():
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not out_of_memory(RuntimeError("shape mismatch"))


def test_variants_take_turns_and_a_slow_one_does_not_eat_the_budget():
    order = []

    def call(name):
        return lambda turn: order.append((name, turn)) or {}

    def sample(run_, turn, calls):
        run_(turn)
        return 900.0 if order[-1][0] == "slow" else 20.0

    timings = measure.interleave(
        {"a": call("a"), "slow": call("slow"), "b": call("b")}, CPU, 3.0, sample
    )
    names = [name for name, _ in order]
    assert names[:3] == ["a", "slow", "b"]  # not counted
    assert names[3:9] == ["a", "slow", "b", "a", "b", "a"]
    assert timings["slow"].repeats == 3
    assert timings["a"].repeats == timings["b"].repeats >= 5
    assert timings["a"].median == 20.0


def test_no_variant_reads_what_another_one_has_just_read():
    timed = []

    def sample(run_, turn, calls):
        timed.extend((run_, turn + n) for n in range(calls))
        return 0.1

    measure.interleave({"a": "a", "b": "b"}, CPU, 3.0, sample)
    turns = [turn for _, turn in timed[2:]]  # the first call of each is not counted
    assert turns == list(range(len(turns)))
    assert {name for name, _ in timed[2:]} == {"a", "b"}


def test_percentiles():
    timing = measure.summarize([float(n) for n in range(1, 12)])
    assert (timing.median, timing.p20, timing.p80, timing.repeats) == (6.0, 3.0, 9.0, 11)


def test_limit_is_the_larger_floor():
    case = Case("info_nce", BOTH, "fp32", {"B": 128, "K": 65536, "D": 256})
    work = OPERATIONS["info_nce"].work(case)
    assert work.flops == 4 * 128 * 65536 * 256
    assert LIMITS.least_ms(work, "fp32") == pytest.approx(work.flops / 50e6)
    small = OPERATIONS["info_nce"].work(Case("info_nce", BOTH, "fp32", {"B": 1, "K": 64, "D": 8}))
    assert LIMITS.least_ms(small, "fp32") == pytest.approx(64 * 8 * 4 / 10e6)


def test_inputs_differ_from_run_to_run_and_are_not_zero():
    case = _loss_case()
    drawn = [
        OPERATIONS["info_nce"].draw(case, CPU, torch.Generator().manual_seed(s)) for s in (1, 2)
    ]
    assert not torch.equal(drawn[0]["rows"], drawn[1]["rows"])
    assert torch.allclose(drawn[0]["rows"].norm(dim=1), torch.ones(64))


def test_the_full_grid_holds_few_queries_small_banks_and_many_k():
    by_op = {}
    for case in GRIDS[("cpu", False)]():
        by_op.setdefault(case.op, set()).add((case.dtype, *case.sizes.values()))
    few = {(t, b, k, 256) for t in ("fp32", "bf16") for b in (8, 32) for k in (4096, 65536)}
    assert few | {("fp32", 1, k, 256) for k in (4096, 65536)} <= by_op["info_nce"]
    batches = (1, 3, 4, 5, 6, 8, 16, 32, 128)
    queue = {(t, b, k, 256) for t in ("fp32", "bf16") for b in batches for k in (4096, 65536)}
    assert queue <= by_op["info_nce_queue"]
    assert {("fp32", b, k, 256) for b in (1, 16, 64) for k in (64, 1024)} <= by_op["info_nce"]
    ranks = {("fp32", b, n, 256, k) for b in (1, 8, 64) for n in (4096, 65536) for k in (1, 1000)}
    assert ranks | {("fp32", 128, 256, 256, 100)} <= by_op["hardest"]
    assert {("fp32", b, d) for b in (8, 64, 4096) for d in (256, 512)} <= by_op["info_nce_batch"]
    assert by_op["one_pair_t2i"] == {("fp32", 1, 1, 36, 12, 256)}


def test_a_queue_lies_in_columns():
    case = Case("info_nce_queue", BOTH, "fp32", {"B": 2, "K": 6, "D": 3})
    rows = OPERATIONS[case.op].draw(case, CPU, _generator())["rows"]
    assert rows.shape == (6, 3) and rows.stride() == (1, 6)


@pytest.mark.parametrize(
    ("op", "sizes", "twin"),
    [
        ("info_nce_queue", {"B": 3, "K": 64, "D": 8}, "sede cpu, rows"),
        ("one_pair_t2i", {"B": 1, "N": 1, "R": 5, "L": 3, "D": 8}, "sede cpu, chosen pair"),
        ("one_pair_i2t", {"B": 1, "N": 1, "R": 5, "L": 3, "D": 8}, "sede cpu, chosen pair"),
    ],
)
def test_a_twin_is_checked_like_ours_and_competes_with_nobody(op, sizes, twin):
    case, operation = Case(op, BOTH, "fp32", sizes), OPERATIONS[op]
    inputs = operation.draw(case, CPU, _generator())
    truth = operation.truth(case, inputs)
    variant = find(operation.variants(case), twin)
    if variant.absent(case, CPU) is None:
        outputs = operation.finish(case, variant.build(case, [inputs])(0))
        assert outputs.keys() == truth.keys()
        for name, value in outputs.items():
            torch.testing.assert_close(value.double(), truth[name], rtol=1e-4, atol=1e-5)
    times = {"ours": 3.0, "twin": 1.0, "eager": 5.0}
    timed = [{"kind": k, "status": "ok", "median_ms": ms} for k, ms in times.items()]
    assert table.best(timed, ours=True) is timed[0]
    assert table.best(timed, ours=False) is timed[2]


@pytest.mark.parametrize(("key", "least"), [(("cuda", False), 300), (("cpu", True), 20)], ids=str)
def test_grids_hold_the_promised_shapes(key, least):
    cases = GRIDS[key]()
    assert len(cases) >= least
    assert all(case.op in OPERATIONS for case in cases)
    sizes = {tuple(c.sizes.values()) for c in cases if c.op == "info_nce"}
    wanted = {
        ("cuda", False): {(b, k, 768) for b in (32, 64, 128, 1024, 4096) for k in (4096, 1 << 20)},
        ("cpu", True): {(128, 65536, 256), (128, 65536, 1024), (512, 16384, 512)},
    }
    assert wanted[key] <= sizes
    if key[0] == "cpu":
        assert any(
            c.K == 1 << 20 and c.D == 256 and c.dtype == "bf16" for c in cases if "K" in c.sizes
        )


def test_command_line_measures_and_reports(tmp_path, capsys):
    out, figures = tmp_path / "r.jsonl", tmp_path / "figures"
    words = ["--smoke", "--op", "hardest", "--no-memory", "--allow-missing", "cpu"]
    words += ["--out", str(out)]
    assert run.main([*words, "--figures", str(figures), "--budget", "0.01"]) == 0
    found, problems = records.read([out])
    assert problems == []
    assert {r["implementation"] for r in found if r["status"] == "ok"} >= {"eager", "chunked torch"}
    assert "hardest" in capsys.readouterr().out
    assert run.main(["compare", str(out), str(out)]) == 0
    assert run.main(["table", str(out)]) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        pytest.param(["--op", "nonsense"], "no case matches", id="op"),
        pytest.param(["--device", "tpu"], "must be auto, cpu or cuda", id="device"),
        pytest.param(["compare", "/nowhere", "/nowhere"], "no results", id="compare"),
    ],
)
def test_wrong_usage_is_one_sentence(words, sentence, capsys):
    assert run.main(words) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_time_limit_names_the_cases_left_out(tmp_path, capsys):
    words = ["--smoke", "--no-memory", "--no-figures", "--allow-missing", "cpu"]
    words += ["--seconds", "0.000001"]
    assert run.main([*words, "--out", str(tmp_path / "r.jsonl")]) == 0
    assert re.search(r"out of time, \d+ cases not run", capsys.readouterr().out)


def test_machine_facts_fit_the_schema():
    facts = machine.facts(CPU)
    assert facts["cpu"].endswith("cores")
    assert machine.last_level_cache(CPU) >= 2**20
    assert machine.slug("AMD EPYC, 2 cores") == "amd-epyc-2-cores"
    assert records.fault(record(**facts)) is None
