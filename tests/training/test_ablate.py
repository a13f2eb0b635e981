"""The ablation on tiny real icons: restartable, paired, and honest about what it lacks."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.jsonl import append
from sede_kernels.study import ablate
from sede_kernels.study.report import Run, markdown, read_runs, rows
from sede_kernels.study.search import candidates, trial_jobs
from sede_kernels.study.variants import grid, variant_config, without_modules
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.files import UserError
from sede_kernels.training.records import read

SMALL = ["--data", "icons_100", "--epochs", "2", "--batch-size", "24", "--dim", "8"]
SMALL += ["--word-dim", "8", "--bank", "30"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_grid_runs_once_and_goes_on_after_a_cut_line(icons, tmp_path, capfd):
    words = ["ablate", *SMALL, "--models", "vse", "--variants", "base,all", "--out", str(tmp_path)]
    assert main([*words, "--seeds", "1"]) == 0
    path = tmp_path / "runs.jsonl"
    first = lines(path)
    assert [record["variant"] for record in first] == ["base", "all"]
    for record in first:
        assert len(record["epochs"]) == 2
        assert record["epochs"][-1]["test"] >= 0
        assert record["epochs"][0]["cpu_s"] < record["epochs"][1]["cpu_s"]
    on = first[1]["config"]
    assert (on["bank"], on["weighting"], on["erase"], on["threads"]) == (30, 5.0, "low", 1)
    assert "0 of 2 runs are on file" in capfd.readouterr().out

    # Killed while it wrote the second line: that run alone is run again.
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert main([*words, "--seeds", "1"]) == 0
    said = capfd.readouterr()
    assert "1 of 2 runs are on file" in said.out
    assert "runs.jsonl line 2 is unreadable and left out" in said.err
    again = read(path)[0]
    assert [record["variant"] for record in again] == ["base", "all"]
    # The same settings give the same scores; only the times differ.
    assert [p["test"] for p in again[1]["epochs"] if "test" in p] == [
        p["test"] for p in first[1]["epochs"] if "test" in p
    ]
    table = (tmp_path / "table.md").read_text()
    assert "| vse | all three | 1 |" in table
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")

    # The run folder of seed 0 stays, for pictures of two runs side by side.
    runs = tmp_path / "runs"
    page = tmp_path / "page.png"
    (every,), (base,) = runs.glob("vse-all-seed0-*"), runs.glob("vse-base-seed0-*")
    pair = [str(every), "--beside", str(base)]
    assert main(["eval", *pair, "--visualize", str(page)]) == 0
    said = capfd.readouterr().out
    assert "\nvse+erase+bank+weighting " in said
    assert "\nvse  " in said
    assert page.read_bytes().startswith(b"\x89PNG")
    assert page.with_name("page_attention.png").read_bytes().startswith(b"\x89PNG")


def test_two_processes_give_the_figures_of_one(icons, tmp_path):
    flags = {"data": "icons_100", "epochs": 1, "batch_size": 24, "dim": 8, "word_dim": 8}
    flags |= {"bank": 30}
    found = []
    for jobs in (1, 2):
        plan = ablate.Study(
            ("scan",), tmp_path / str(jobs), ("base", "lsns"), 1, jobs, flags=flags, keep=0
        )
        found.append({run.config: run.test() for run in ablate.ablate(plan)})
        assert not list((tmp_path / str(jobs) / "runs").glob("*"))
    assert found[0] == found[1]
    assert len(found[0]) == 2


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_command_takes_its_runs_with_it(icons, tmp_path):
    words = ["ablate", *SMALL, "--models", "vse", "--variants", "base,age", "--seeds", "1"]
    words += ["--jobs", "2", "--epochs", "100000", "--out", str(tmp_path)]
    command = subprocess.Popen([sys.executable, "-m", "sede_kernels.cli", *words])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("runs/*/metrics.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    found = Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()
    children = [int(pid) for pid in found]
    assert len(children) >= 2 and all(alive(pid) for pid in children)
    command.kill()
    command.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


def test_search_gives_every_part_the_same_trials_and_ablate_reads_the_choice(
    icons, tmp_path, capfd
):
    words = ["ablate", *SMALL[:-2], "--epochs", "1", "--models", "vse", "--out", str(tmp_path)]
    assert main([*words, "--search", "--trials", "2"]) == 0
    trials = lines(tmp_path / "search.jsonl")
    assert sorted(t["variant"] for t in trials) == sorted(["base", "age", "lsns", "wil"] * 2)
    chosen = json.loads((tmp_path / "settings.json").read_text())["vse"]
    best = {}
    for trial in trials:
        dev = max(point["dev"] for point in trial["epochs"])
        best.setdefault(trial["variant"], []).append((dev, trial["config"]))
    for part, values in chosen.items():
        _, config = max(best[part], key=lambda pair: pair[0])
        assert values == {name: config[name] for name in values}
    # The modules were tried on the base that was chosen before.
    for _, config in best["wil"]:
        assert {n: config[n] for n in chosen["base"]} == chosen["base"]
    # Trials differ in a setting that no name spells out; each has a folder of its own.
    jobs = trial_jobs("vse", "base", 9, {}, {})
    assert len({job.name for job in jobs}) == 9
    size = len(trials)
    assert main([*words, "--search", "--trials", "2"]) == 0
    assert len(lines(tmp_path / "search.jsonl")) == size

    # A search of one part with another value goes on with the trials on file.
    more = ["--variants", "wil", "--trials", "1", "--weighting", "3"]
    assert main([*words, "--search", *more]) == 0
    assert len(lines(tmp_path / "search.jsonl")) == size + 1
    again = json.loads((tmp_path / "settings.json").read_text())["vse"]
    assert {**again, "wil": None} == {**chosen, "wil": None}
    newest = lines(tmp_path / "search.jsonl")[-1]
    best["wil"].append((max(point["dev"] for point in newest["epochs"]), newest["config"]))
    chosen = again
    highest = max(best["wil"], key=lambda pair: pair[0])[1]
    assert again["wil"]["weighting"] == highest["weighting"]

    settings = str(tmp_path / "settings.json")
    assert main([*words, "--variants", "wil", "--seeds", "1", "--settings", settings]) == 0
    (record,) = lines(tmp_path / "runs.jsonl")
    assert record["config"]["weighting"] == chosen["wil"]["weighting"]
    assert record["config"]["lr"] == chosen["base"]["lr"]
    # A run without its base has no difference, and the table says so.
    assert "| vse | +weighting | 1 |" in (tmp_path / "table.md").read_text()
    assert "| none |" in (tmp_path / "table.md").read_text()


def test_settings_are_checked_before_anything_runs(icons, tmp_path, capfd):
    def fails(*words: str) -> str:
        assert main(["ablate", "--out", str(tmp_path), *words]) == 1
        return capfd.readouterr().err

    assert "there is no model 'vsr'" in fails("--models", "vsr")
    assert "there is no variant 'agee'" in fails("--models", "vse", "--variants", "agee")
    assert "--seeds must be 1 or more" in fails("--seeds", "0")
    assert "use --seeds" in fails("--seed", "3")
    assert "would leave a module off" in fails("--bank", "0")
    assert "the hinge has no weighting" in fails("--loss", "hinge")
    assert "no data set 'nowhere'" in fails("--models", "vse", "--data", "nowhere")
    assert "no settings file" in fails("--models", "vse", "--settings", str(tmp_path / "s.json"))
    (tmp_path / "s.json").write_text('{"vse": {"bese": {}}}')
    assert "has a part 'bese'" in fails("--models", "vse", "--settings", str(tmp_path / "s.json"))
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_failed_run_is_told_and_the_others_go_on(icons, tmp_path, capfd, monkeypatch):
    real = ablate.measure

    def measure(job, *arguments, **keywords):
        if job.variant == "base":
            raise UserError("the loss became nan in epoch 1, step 1")
        return real(job, *arguments, **keywords)

    monkeypatch.setattr(ablate, "measure", measure)
    words = ["ablate", *SMALL, "--models", "vse", "--variants", "base,wil", "--seeds", "1"]
    assert main([*words, "--epochs", "1", "--out", str(tmp_path)]) == 1
    assert "1 runs failed, the others are on file: vse-base-seed0-" in capfd.readouterr().err
    assert [r["variant"] for r in lines(tmp_path / "runs.jsonl")] == ["wil"]


def test_variants_differ_from_base_in_their_modules_only():
    flags = {"erase": "high", "bank": 64, "lr": 1e-3, "epochs": 3}
    chosen = {"base": {"lr": 4e-3, "temperature": 0.1}, "wil": {"weighting": 7.0}}
    base = variant_config("vse", "base", flags, chosen)
    assert (base.bank, base.erase, base.weighting) == (0, "off", 0.0)
    assert (base.lr, base.temperature) == (1e-3, 0.1)  # a flag wins over the choice
    every = variant_config("vse", "all", flags, chosen)
    assert (every.bank, every.erase, every.weighting) == (64, "high", 7.0)
    jobs = grid(["vse", "scan"], ["base", "age", "lsns", "wil", "all"], range(3), {}, {})
    assert len({job.config for job in jobs}) == 30
    assert len({job.name for job in jobs}) == 30
    bases = {job.config for job in jobs if job.variant == "base"}
    assert {without_modules(job.config) for job in jobs} == bases
    assert [job.config.seed for job in jobs[:10]] == [0] * 10  # whole pairs first


def run(variant: str, seed: int, dev: list[float], test: list[float], seconds: float) -> Run:
    config = TrainConfig(data="d", model="vse", epochs=len(dev), seed=seed)
    if variant == "wil":
        config = TrainConfig(data="d", model="vse", epochs=len(dev), seed=seed, weighting=5.0)
    epochs = [
        {"dev": d, "test": t, "cpu_s": seconds * (i + 1)}
        for i, (d, t) in enumerate(zip(dev, test, strict=True))
    ]
    return Run(variant, config, epochs, {})


def test_columns_of_one_table():
    """Best on dev and equal epochs stop each run elsewhere; test chooses nothing."""
    runs = []
    for seed in range(3):
        runs.append(run("base", seed, [10, 30, 20, 25], [11, 31, 50, 26], 1.0))
        runs.append(run("wil", seed, [10, 20, 30, 40], [12, 22, 32 + seed, 42 + seed], 1.5))
    runs.append(run("wil", 9, [90.0], [90.0], 1.5))  # without its base: no difference
    base, wil = rows(runs)
    assert base.gains == {}
    assert base.test.mean == 31
    assert wil.per_seed == [42 - 31, 43 - 31, 44 - 31]
    assert wil.gains["best"].mean == pytest.approx(12)
    assert wil.gains["last"].mean == pytest.approx(43 - 26)
    assert wil.cost == pytest.approx(1.5)
    assert "time" not in wil.gains  # no base on file was trained 1.5 times as long
    assert "**+12.0 [+9.5, +14.5]**" in markdown(runs)


def test_equal_time_compares_with_a_base_trained_as_long_on_its_own_schedule():
    wil = run("wil", 0, [1, 3], [1, 30], 1.5)
    base = run("base", 0, [1, 2], [1, 20], 1.0)
    shorter, longer, longest = (
        run("base", 0, [1] * n, [score] * n, 1.0) for n, score in ((1, 5), (3, 26), (9, 28))
    )
    other_seed = run("base", 1, [1] * 3, [0] * 3, 1.0)
    every = [wil, base, shorter, longer, longest, other_seed]
    assert rows([wil, base], every)[1].gains["time"].mean == 30 - 26
    assert "| +4.0 | 1.50x |" in markdown(every)
    # Between the schedules of 3 and 9 epochs: half way in the logarithm of the time.
    slow = run("wil", 0, [1, 3], [1, 30], 1.5 * 3**0.5)
    assert rows([slow, base], every)[1].gains["time"].mean == pytest.approx(30 - (26 + 28) / 2)
    # Within the noise of the clock the base itself is long enough.
    quick = run("wil", 0, [1, 3], [1, 30], 1.01)
    assert rows([quick, base], every)[1].gains["time"].mean == 30 - 20


def test_a_base_of_an_earlier_default_is_still_the_base():
    base, wil = run("base", 0, [1], [10], 1.0), run("wil", 0, [1], [15], 1.0)
    older = replace(base, config=replace(base.config, bank_share=0.25))
    assert rows([older, wil])[1].gains["best"].mean == 5
    again = run("base", 0, [1], [12], 1.0)
    both = rows([older, again, wil])
    assert (both[0].test.count, both[0].test.mean, both[1].gains["best"].mean) == (1, 12, 3)


def test_times_and_pairs_stay_on_one_processor():
    """A run is compared with a base of its own processor, whichever is filed last."""
    fast = [run("base", 0, [1], [10], 1.0), run("base", 1, [1], [11], 1.0)]
    slow = [replace(base, epochs=run("base", 0, [1], [12], 2.0).epochs) for base in fast]
    quick, late = run("wil", 0, [1], [15], 1.2), run("wil", 1, [1], [17], 2.2)
    there = [replace(one, processor="slow") for one in (*slow, late)]
    for order in ([*fast, *there], [*there, *fast]):
        wil = rows([quick, *order])[1]
        assert wil.per_seed == [15 - 10, 17 - 12]
        assert wil.cost == pytest.approx((1.2 + 1.1) / 2)
    # Without a base of its own processor the other one gives the scores, and no time.
    both = rows([quick, fast[0], there[2], fast[1]])[1]
    assert (both.per_seed, both.cost) == ([15 - 10, 17 - 11], 1.2)


def test_records_survive_damage(tmp_path):
    path = tmp_path / "runs.jsonl"
    assert read(path) == ([], [])
    append(path, {"variant": "base", "n": 1})
    with open(path, "ab") as handle:
        handle.write(b'{"variant": "cut')
    append(path, {"variant": "wil", "n": 2})
    with open(path, "ab") as handle:
        handle.write(b'\xff\xfe\n[1, 2]\n{"n": 3}\n\n')
    records, complaints = read(path, ("variant",))
    assert [record["n"] for record in records] == [1, 2]
    assert [c.split(" is ")[0].split()[-1] for c in complaints] == ["2", "4", "5", "6"]
    with pytest.raises(ValueError, match="JSON compliant"):
        append(path, {"n": float("nan")})
    assert read_runs([]) == []


def test_trials_are_spread_and_start_with_the_usual_setting():
    assert candidates("base", 1, "vsrn") == [{"lr": 2e-3, "temperature": 0.05, "dropout": 0.2}]
    every = candidates("base", 99, "vsrn")
    assert len(every) == 4 * 4 * 4
    assert all(every.count(point) == 1 for point in every)
    assert {point["temperature"] for point in every[1:5]} == {0.02, 0.03, 0.05, 0.1}
    rules = candidates("age", 99, "scan", {"erase"})
    assert {point["erase_pass"] for point in rules} == {"replace", "train", "second"}
    assert sorted({point["erase_rule"] for point in rules}) == ["mean", "prob", "quantile"]
    assert rules[0]["erase_rule"] == "mean"
    assert candidates("wil", 3, "vsrn", {"weighting"}) == [{}]
    # The number of hardest sets says nothing to a model with one vector a side.
    assert "bank_hardest" in candidates("lsns", 1, "bfan")[0]
    assert "bank_hardest" not in candidates("lsns", 1, "vsrn")[0]


def test_by_the_quantile_either_side_loses_a_quarter_of_the_regions():
    attention = torch.rand(5, 36, generator=torch.Generator().manual_seed(0)).softmax(1)
    sides = set()
    for job in trial_jobs("vsrn", "age", 99, {}, {}):
        erasing = job.config.erasing
        if erasing.rule == "quantile":
            sides.add(erasing.side)
            assert (erasing.kept(attention).sum(1) == 27).all()
    assert sides == {"low", "high"}
