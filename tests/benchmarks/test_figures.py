"""Figures, tables and targets: all from JSON lines alone."""

import subprocess
from pathlib import Path

import matplotlib
import pytest

from benchmarks import drawing, plot, records, run, table, targets
from benchmarks.case import BOTH
from tests.benchmarks.test_records import record

ROOT = Path(__file__).parents[2]


def _sweep_records():
    found = []
    for k, ms in ((4096, 1.0), (65536, 10.0), (262144, 40.0)):
        for name, kind, factor in (("sede cpu", "ours", 1), ("eager", "eager", 4)):
            median = ms * factor
            found.append(
                record(
                    implementation=name,
                    kind=kind,
                    mode=BOTH,
                    sizes={"B": 128, "K": k, "D": 256},
                    flops=4.0 * 128 * k * 256,
                    bytes=4.0 * k * 256,
                    median_ms=median,
                    p20_ms=median,
                    p80_ms=median,
                )
            )
    lost = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "fraction_of_limit", "passed"))
    found[-1] = (
        found[-1] | lost | {"status": "out of memory", "reason": "killed", "extra_peak_mb": None}
    )
    return found


def test_figures_come_from_the_lines_alone(tmp_path, capsys):
    path = tmp_path / "some.jsonl"
    for one in _sweep_records():
        records.append(path, one)
    path.write_text(path.read_text() + "torn")
    assert run.main(["plot", str(path), "--out", str(tmp_path / "figures")]) == 0
    made = sorted(p.name for p in (tmp_path / "figures" / "some-cpu").iterdir())
    names = ("k_sweep", "roofline", "speed_up")
    drawn = sorted(f"{n}.{ending}" for n in names for ending in ("png", "svg"))
    assert made == sorted([*drawn, "summary.md"])
    assert "killed" in (tmp_path / "figures" / "some-cpu" / "summary.md").read_text()
    svg = (tmp_path / "figures" / "some-cpu" / "k_sweep.svg").read_text()
    assert "some cpu" in svg
    assert "out of memory" in svg
    assert "unreadable" in capsys.readouterr().err


def test_a_figure_of_runs_of_several_commits_says_so():
    plt = pytest.importorskip("matplotlib.pyplot")
    found = [dict(one, git="first") for one in _sweep_records()]
    found[-1] |= {"git": "last", "utc": "2099-01-01T00:00:00Z"}
    for some, said in ((found[:-1], "sede-kernels first ·"), (found, "2 commits up to last ·")):
        figure = plt.figure()
        drawing.footer(figure, some)
        assert said in figure.texts[0].get_text()
        plt.close(figure)


def test_figures_of_named_results_lie_beside_them(tmp_path, monkeypatch):
    """And not over those of all results of the machine."""
    monkeypatch.setattr(run.machine, "home", lambda: tmp_path / "home")
    path = tmp_path / "mine" / "some.jsonl"
    for one in _sweep_records():
        records.append(path, one)
    for place in (path, path.parent):
        assert run.main(["plot", str(place)]) == 0
        assert (path.parent / "figures" / "some-cpu" / "summary.md").exists()
    assert not (tmp_path / "home").exists()


def test_a_full_disk_leaves_earlier_figures_whole(tmp_path, monkeypatch):
    figures = pytest.importorskip("matplotlib.figure")
    (tmp_path / "k_sweep.png").write_text("earlier")

    def write_half(_, file, **__):
        Path(file).write_bytes(b"half") if isinstance(file, Path) else file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.Figure, "savefig", write_half)
    with pytest.raises(OSError, match="No space left") as caught:
        plot.draw(_sweep_records(), tmp_path)
    assert caught.value.filename == str(tmp_path / "k_sweep.png")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["earlier"]


def test_a_case_is_drawn_from_its_runs_with_the_most_threads(tmp_path):
    path = tmp_path / "some.jsonl"
    for one in _sweep_records():
        one["threads"] = 2 if one["sizes"]["K"] < 100_000 else 1
        records.append(path, one)
        later = one | {"threads": 1, "utc": "2027-01-01T00:00:00+00:00"}
        records.append(path, later)
    found, _ = records.read([path])
    kept = records.of_most_threads(found)
    assert [r["threads"] for r in kept] == [2] * 4 + [1] * 4
    assert run.main(["plot", str(path), "--out", str(tmp_path / "figures")]) == 0
    svg = (tmp_path / "figures" / "some-cpu" / "k_sweep.svg").read_text()
    assert "1 or 2 threads" in svg


def test_no_label_of_the_speed_ups_is_cut():
    """The longest texts of the widest bars end inside of the axes."""
    plt = pytest.importorskip("matplotlib.pyplot")
    found = _sweep_records()
    for one in found:
        if one["kind"] == "eager":
            one["implementation"] = "another implementation with a long name"
            one["median_ms"] = one["median_ms"] and 40 * one["median_ms"]
    figure = drawing.speed_up(found, plt)
    renderer = figure.canvas.get_renderer()
    (axis,) = figure.axes
    edge = axis.get_window_extent(renderer).x1
    assert len(axis.texts) == 2
    assert all(text.get_window_extent(renderer).x1 <= edge for text in axis.texts)
    plt.close(figure)


def test_the_roofline_names_what_it_draws_side_by_side():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = drawing.roofline(_sweep_records(), plt)
    left = figure.axes[0]
    legend = left.get_legend()
    named = [patch.get_facecolor() for patch in legend.get_patches()]
    points = [line for line in left.lines if line.get_marker() not in ("None", None, "")]
    drawn = {matplotlib.colors.to_rgba(line.get_color()) for line in points}
    assert drawn == set(named)
    assert len(named) == len(drawn) == 2
    places = [float(line.get_xdata()[0]) for line in points]
    assert len(set(places)) == len(places), "no point on the abscissa of another"
    plt.close(figure)


def test_no_roof_runs_through_the_label_of_another():
    plt = pytest.importorskip("matplotlib.pyplot")
    found = _sweep_records()
    found += [one | {"dtype": "bf16", "matrix_gflops": 200.0} for one in found]
    figure = drawing.roofline(found, plt)
    left = figure.axes[0]
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in left.texts if "GFLOP/s" in text.get_text()]
    roofs = [line for line in left.lines if line.get_marker() == "None"]
    assert len(boxes) == len(roofs) == 2
    for roof in roofs:
        path = left.transData.transform_path(roof.get_path())
        assert not any(path.intersects_bbox(box, filled=False) for box in boxes)
    plt.close(figure)


def test_the_summary_says_on_how_many_threads():
    head, _, row = table.summary(_sweep_records()).splitlines()[:3]
    assert row[head.index("threads") :][: len("threads")].strip() == "2"


def test_nothing_to_draw_writes_nothing(tmp_path):
    assert plot.draw([record(status="absent", median_ms=None, passed=None)], tmp_path) == []


def test_summary_table_is_bounded_and_names_the_best_peer():
    found = _sweep_records()
    text = table.summary(found, most=2)
    assert "eager" in text
    assert "4.00" in text
    assert "1 more cases" in text
    assert "fails the check" in table.of_case(
        [record(status="wrong", median_ms=None, passed=False, errors={"loss": None})]
    )


def test_targets_compare_the_records_with_what_is_asked():
    sizes = {"B": 128, "K": 65536, "D": 256}
    common = {"mode": BOTH, "sizes": sizes, "fraction_of_limit": 0.9, "extra_peak_mb": 7.0}
    found = [
        record(implementation=name, kind=kind, median_ms=ms, **common)
        for name, kind, ms in (
            ("sede cpu", "ours", 10.0),
            ("eager", "eager", 39.0),
            ("torch.compile", "peer", 20.0),
            ("chunked torch", "peer", 15.0),
        )
    ]
    listed = {title: (text, met) for title, _, text, met in targets.rows(found)}
    text, met = listed["InfoNCE fp32, B 128, K 65,536, D 256"]
    assert not met
    assert text.startswith("90.0 % of FMA peak, 3.90 x eager, 2.00 x torch.compile, 1.50 x chunked")
    found[1]["median_ms"] = 41.0
    listed = {title: (text, met) for title, _, text, met in targets.rows(found)}
    assert listed["InfoNCE fp32, B 128, K 65,536, D 256"][1]
    assert listed["InfoNCE fp32, B 512, K 16,384, D 512"][1] is None
    text, met = listed["every bank loss of the grid, least lead"]
    assert text == "1.50 x chunked torch: info_nce fp32, B 128, K 65,536, D 256; 2 threads"
    assert met
    assert listed["losses of given scores, least lead"][1] is None
    assert listed["extra memory of InfoNCE, case nearest its bound"] == (
        "7.0 of 8.3 MB: info_nce fp32, B 128, K 65,536, D 256; 2 threads",
        True,
    )


def test_the_least_lead_of_given_scores_is_a_target():
    found = [
        record(op=op, mode=BOTH, sizes={"B": size, "N": size}, implementation=name, median_ms=ms)
        for op in ("score_info_nce", "weighted_score_info_nce")
        for size, eager in ((128, 0.9), (1024, 3.0))
        for name, ms in (("sede cpu", 1.0), ("eager", eager))
    ]
    listed = {title: (text, met) for title, _, text, met in targets.rows(found)}
    text, met = listed["losses of given scores, least lead"]
    assert text.startswith("0.90 x eager: ")
    assert text.endswith("score_info_nce fp32, B 128, N 128; 2 threads")
    assert met is False


def test_in_batch_losses_of_64_rows_and_more_are_a_target():
    found = [
        record(
            op="info_nce_batch", mode=BOTH, sizes={"B": size, "D": 256}, implementation=name,
            median_ms=ms,
        )
        for size, eager in ((8, 0.5), (64, 1.2), (512, 1.1))
        for name, ms in (("sede cpu", 1.0), ("eager", eager))
    ]  # fmt: skip
    listed = {title: (text, met) for title, _, text, met in targets.rows(found)}
    assert listed["in-batch negatives alone, B ≥ 64, least lead"] == (
        "1.10 x eager: info_nce_batch fp32, B 512, D 256; 2 threads",
        True,
    )


def test_peak_and_attention_are_targets():
    sizes = {"B": 128, "K": 65536, "D": 256}
    share = {"mode": BOTH, "fraction_of_limit": 0.84}
    found = [
        record(dtype="bf16", sizes=sizes, implementation="sede cpu", median_ms=1.0, **share),
        record(dtype="fp32", sizes=sizes, implementation="sede cpu", median_ms=2.0, **share),
    ]
    for name, ms in (("sede cpu", 1.0), ("attention V=K", 1.2)):
        small = {"B": 128, "K": 4096, "D": 256}
        found.append(record(sizes=small, implementation=name, median_ms=ms, **share))
    listed = {title: (text, met) for title, _, text, met in targets.rows(found)}
    text, met = listed["InfoNCE bf16, B 128, K 65,536, D 256"]
    assert text.startswith("2.00 x our fp32, 84.0 % of bf16 peak")
    assert met is False
    assert listed["InfoNCE fp32, B 128, K 4,096, D 256"] == (
        "1.20 x attention V=K; 2 threads",
        True,
    )
    found[1]["threads"] += 1
    listed = {title: text for title, _, text, _ in targets.rows(found)}
    assert listed["InfoNCE bf16, B 128, K 65,536, D 256"].startswith("our fp32: not run, 84.0 %")


def test_the_documented_targets_are_those_of_the_committed_records():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "records/bench/amd-epyc-2-cores/*.jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    if not paths:
        pytest.skip("no git checkout")
    documented = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    found, problems = records.read(paths)
    assert problems == []
    assert targets.markdown(records.latest(found).values()) in documented
