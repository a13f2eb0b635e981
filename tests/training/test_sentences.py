"""What `sede` says can be copied into a shell, and names no more than a reader needs."""

import errno
import importlib.util
import re
import shlex
import subprocess

import pytest
import torch

import sede_kernels
from sede_kernels import whole_file
from sede_kernels.cli import main
from sede_kernels.training import files
from sede_kernels.training.files import UserError
from sede_kernels.training.limits import choose_device, device_problem

from .conftest import TINY, read_log, refused
from .test_resume import command


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("foo", "it is no name of a device"),
        ("", "it is no name of a device"),
        ("cuda:x", "it is no name of a device"),
        ("\udcff", "it is no name of a device"),
        ("meta", "Tensor.item() cannot be called on meta tensors"),
        ("mps", "Could not run 'aten::empty.memory_format' with arguments from the 'MPS' backend"),
    ],
    ids=lambda value: value.encode("ascii", "replace").decode()[:9],
)
def test_a_device_that_cannot_be_is_one_short_sentence(name, reason):
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    assert device_problem(name) == f"device {name!r} cannot be used here ({reason})"


def test_only_devices_that_are_here_are_offered():
    usable = "cpu or cuda" if torch.cuda.is_available() else "cpu"
    with pytest.raises(UserError, match=rf"\): choose {usable}\.$"):
        choose_device("foo")


def test_commands_that_are_told_hold_for_a_path_with_spaces(tiny, tmp_path, capfd):
    out = tmp_path / "my runs" / "it's one"
    words = ["train", "--data=tiny", *TINY, "--out", str(out)]
    assert main(words) == 0
    (told,) = re.findall(r"`(tensorboard .*)`", capfd.readouterr().out)
    assert shlex.split(told) == ["tensorboard", "--logdir", str(out)]
    (told,) = re.findall(r"`(sede .*)`", refused(capfd, *words))
    assert shlex.split(told) == ["sede", "train", "--resume", str(out)]


def test_a_run_whose_output_nobody_reads_any_more_can_go_on(tiny, tmp_path, capfd):
    """As `sede train | head -1` has it."""
    out = tmp_path / "run"
    flags = ["--data=tiny", *TINY, "--epochs", "400"]
    with subprocess.Popen(
        command("train", *flags, "--out", out),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert "epoch" in run.stdout.readline()
        run.stdout.close()
        said = run.stderr.read().strip().splitlines()
    assert run.returncode == 1
    then = f"go on with `sede train --resume {out}`."
    assert said[-1] == f"sede: whoever read the output is gone: {then}"
    done = len(read_log(out))
    assert 0 < done < 400
    assert main(["train", "--resume", str(out), "--epochs", str(done + 1)]) == 0


def test_a_link_that_leads_nowhere_is_told(tiny, tmp_path, capfd):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    said = refused(capfd, "train", "--data=tiny", *TINY, "--out", link)
    told = f"a link at {link} leads to no folder: remove it, or choose another folder."
    assert said.removeprefix("sede: ") == told


def test_the_version_is_told(capfd):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capfd.readouterr().out == f"sede-kernels {sede_kernels.__version__}\n"


ISA = "SEDE_CPU_ISA must be auto or one of "


@pytest.mark.parametrize(
    "words", [["info"], ["train", "--data=tiny", *TINY, "--out=RUN"]], ids=" ".join
)
def test_an_instruction_set_that_cannot_be(words, tiny, tmp_path, monkeypatch, capfd):
    _native = pytest.importorskip("sede_kernels.backends.cpu._native")
    if isinstance(_native._import(), str):
        pytest.skip("no native module")

    def refuse():
        raise ValueError(f"{ISA}scalar, got 'x'.")

    monkeypatch.setattr(_native, "_import", refuse)
    said = refused(capfd, *[word.replace("RUN", str(tmp_path / "run")) for word in words])
    assert said == f"{ISA}scalar, got 'x': choose one of them, or unset it."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("WORLD_SIZE", "x", "WORLD_SIZE must be a whole number, got 'x': start the processes by "),
        ("WORLD_SIZE", "2", "environment variable RANK expected, but not set): start them by t"),
        *(
            ("SEDE_RANK_TIMEOUT", value, f"at most 31,536,000, got '{value}'")
            for value in ("x", "nan", "inf", "0", "-3", "1e9")
        ),
    ],
)
def test_an_environment_that_torchrun_did_not_make(variable, value, told, monkeypatch, capfd):
    for name in ("RANK", "MASTER_ADDR", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(variable, value)
    assert told in refused(capfd, "eval", "run")


def without_packages(name: str, *_: object) -> None:
    """Stands for ``find_spec`` where only torch and numpy are installed."""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bench", "--list"], 'tqdm` (or `pip install "sede-kernels[bench]"`).'),
        (["bench", "plot"], 'tqdm` (or `pip install "sede-kernels[bench]"`).'),
        (["train"], 'pillow tqdm tensorboard` (or `pip install "sede-kernels[train]"`).'),
        (["eval", "run"], 'pillow tqdm` (or `pip install "sede-kernels[train]"`).'),
        (["prepare", "icons"], 'pillow tqdm` (or `pip install "sede-kernels[train]"`).'),
        (["demo"], 'pillow tqdm tensorboard` (or `pip install "sede-kernels[train]"`).'),
        (
            ["ablate"],
            'pillow tqdm tensorboard matplotlib` (or `pip install "sede-kernels[train]"`).',
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_missing_package_is_named_with_its_extra(words, told, monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", without_packages)
    said = refused(capfd, *words)
    assert said.endswith(f"run `pip install {told}") and f"`sede {words[0]}" in said


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """A read-only disk refuses to delete as well, also what is not there."""

    def read_only(path, *_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("builtins.open", read_only)
    monkeypatch.setattr(whole_file.os, "unlink", read_only)
    with (
        pytest.raises(OSError, match="Read-only") as caught,
        whole_file.atomic_file(tmp_path / "p"),
    ):
        pass
    assert files.describe_os_error(caught.value) == (
        f"Read-only file system at {tmp_path / 'p'}: choose another place, or change who may write "
        "there."
    )
