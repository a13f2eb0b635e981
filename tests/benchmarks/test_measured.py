"""What a run says of the package that it measures, and what it refuses."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

import sede_kernels
from benchmarks import compare, machine, measured, memory, records, run, table
from tests.benchmarks.test_records import record

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NOT_BUILT = "the native module is not built"


def _backends(monkeypatch, **reasons):
    found = dict.fromkeys(("reference", "torch", "cpu", "triton", "cuda")) | reasons
    monkeypatch.setattr(measured, "available_backends", lambda: found)


def test_the_header_names_files_and_backends(monkeypatch):
    _backends(monkeypatch)
    package, native = measured.files()
    assert package == sede_kernels.__file__
    lines = measured.header(CPU).splitlines()
    assert lines[0] == f"measured: {package}"
    assert lines[2].startswith(f"native:   {native} (" if native else "native:   none")
    assert lines[3:] == ["backends: sede cpu, sede torch"]
    _backends(monkeypatch, cpu=NOT_BUILT)
    assert measured.header(CPU).splitlines()[3:] == [
        "backends: sede torch",
        f"missing:  sede cpu: {NOT_BUILT}",
    ]


def test_only_what_this_version_has_for_the_device_is_missing(monkeypatch):
    _backends(monkeypatch, cpu=NOT_BUILT, triton="not installed", cuda="not in this build")
    assert measured.missing(CPU) == {"cpu": NOT_BUILT}
    assert measured.missing(CUDA) == {"triton": "not installed", "cuda": "not in this build"}
    monkeypatch.setattr("sys.platform", "win32")
    assert measured.missing(CPU) == {}


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        pytest.param([], True, id="all"),
        pytest.param(["--impl", "eager", "--impl", "sede cpu"], True, id="asked-for"),
        pytest.param(["--impl", "eager"], False, id="not-asked-for"),
        pytest.param(["--allow-missing", "cpu"], False, id="allowed"),
        pytest.param(["--allow-missing", "triton"], True, id="another-allowed"),
    ],
)
def test_a_missing_backend_is_refused_unless_told_so(tmp_path, monkeypatch, capsys, words, refused):
    _backends(monkeypatch, cpu=NOT_BUILT)
    out = tmp_path / "r.jsonl"
    common = ["--smoke", "--op", "enqueue", "--no-memory", "--no-figures", "--budget", "0.01"]
    assert run.main([*common, "--device", "cpu", "--out", str(out), *words]) == (
        2 if refused else 0
    )
    error = capsys.readouterr().err
    assert (NOT_BUILT in error, out.exists()) == (refused, not refused)


def test_a_native_module_of_another_installation_is_refused(monkeypatch):
    monkeypatch.setattr(measured, "files", lambda: ("/a/sede_kernels/__init__.py", "/b/_cpu.so"))
    with pytest.raises(ValueError, match="of another installation"):
        measured.refuse_gaps(CPU, ())


def test_an_unknown_backend_cannot_be_allowed(capsys):
    assert run.main(["--smoke", "--allow-missing", "cpus"]) == 2
    assert "one of cpu, triton, cuda, got 'cpus'" in capsys.readouterr().err


def test_another_package_in_the_memory_process_is_an_error(monkeypatch):
    monkeypatch.setattr(measured, "files", lambda: ("/elsewhere/sede_kernels/__init__.py", None))
    with pytest.raises(ValueError, match="and not /elsewhere/sede_kernels/"):
        memory.Memory().peaks(None, [])


def _absent(reason):
    lost = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "fraction_of_limit", "passed"))
    return record(**lost, status="absent", reason=reason)


def _write(path: Path, *found):
    for one in found:
        records.append(path, one)
    return path


def test_compare_refuses_a_side_that_lacks_a_backend(tmp_path, capsys):
    eager = record(implementation="eager", kind="eager")
    whole = _write(tmp_path / "whole.jsonl", record(), eager)
    part = _write(tmp_path / "part.jsonl", _absent(NOT_BUILT), eager)
    for words in ([str(whole), str(part)], [str(part), str(whole)]):
        with pytest.raises(ValueError, match=f"without sede cpu .{NOT_BUILT}.*--allow-missing cpu"):
            compare.main(words)
    assert compare.main([str(part), str(whole), "--allow-missing", "cpu"]) == 0
    assert "eager" in capsys.readouterr().out


def test_a_summary_says_which_backend_it_lacks():
    eager = record(implementation="eager", kind="eager")
    line = f"measured without sede cpu: {NOT_BUILT}"
    assert table.summary([_absent(NOT_BUILT), eager]).splitlines()[-1] == line
    assert line not in table.summary([_absent(NOT_BUILT), record()])
    assert "measured without" not in table.summary([_absent("runs on cuda only"), eager])


def _clone(folder: Path, source: str) -> Path:
    for name in ("benchmarks", "csrc", "sede_kernels"):
        (folder / name).mkdir(parents=True)
    (folder / "benchmarks" / "gpu_suite.sh").touch()
    (folder / "sede_kernels" / "__init__.py").write_text(source)
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    return folder


@pytest.mark.parametrize("same", [True, False], ids=["same-sources", "other-sources"])
def test_the_commit_is_that_of_the_measured_package(tmp_path, monkeypatch, same):
    home = _clone(tmp_path / "clone", "a = 1\n")
    installed = tmp_path / "site" / "sede_kernels" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("a = 1\n" if same else "a = 2\n")
    monkeypatch.setattr(sede_kernels, "__file__", str(installed))
    monkeypatch.setattr(machine, "clone", lambda: home)
    monkeypatch.setattr(machine, "_installed_commit", lambda: None)
    head = machine._command("git", "rev-parse", "--short=12", "HEAD", folder=home)
    assert len(head) == 12
    assert machine.git_state.__wrapped__() == (head if same else "unknown")
    (home / "csrc" / "new.cpp").write_text("")
    machine._command("git", "add", ".", folder=home)
    assert machine.git_state.__wrapped__() == (f"{head}+" if same else "unknown")


def test_pip_knows_the_commit_that_it_installed_from(monkeypatch):
    class Distribution:
        def __init__(self, text):
            self.text = text

        def read_text(self, name):
            return self.text

    told = json.dumps(
        {"url": "https://x", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcd"}}
    )
    for text, commit in ((told, "0123456789ab"), ('{"dir_info": {}}', None), (None, None)):
        monkeypatch.setattr(machine, "distribution", lambda name, text=text: Distribution(text))
        assert machine._installed_commit() == commit


def test_results_go_to_the_clone_or_below_the_present_folder(tmp_path, monkeypatch):
    home = _clone(tmp_path / "clone", "")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "site" / "_bench" / "machine.py"))
    monkeypatch.chdir(home / "csrc")
    assert machine.home() == home / "records" / "bench"
    monkeypatch.chdir(tmp_path)
    assert machine.home() == Path("sede-bench")
