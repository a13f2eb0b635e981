"""Files that are whole or absent, wherever the package writes one."""

import os
import re
import stat
from pathlib import Path

import pytest

from sede_kernels.whole_file import write_text

ROOT = Path(__file__).parents[2]


def test_a_failure_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    write_text(tmp_path / "a", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(tmp_path / "a", "new")
    assert caught.value.filename == str(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_link_at_the_place_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "out", "theirs")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "out").is_symlink() and (tmp_path / "out").read_text() == "theirs"


def test_the_tuning_file_is_written_whole_with_the_mode_of_any_file(tmp_path):
    tuning = pytest.importorskip("sede_kernels.backends.triton.tuning", reason="needs Triton")
    before = os.umask(0o027)
    try:
        tuning._store(tmp_path / "kept" / "tuning.json", {"bank_lse 64": [1, 2]})
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    assert os.listdir(tmp_path / "kept") == ["tuning.json"]
    assert tuning._stored(tmp_path / "kept" / "tuning.json") == {"bank_lse 64": [1, 2]}
    modes = {(tmp_path / name).stat().st_mode for name in ("kept/tuning.json", "other")}
    assert [stat.S_IMODE(mode) for mode in modes] == [0o640]


def test_nothing_goes_through_a_name_that_can_be_foreseen():
    """A file is renamed to its place in whole_file and, for folders, in training/files only."""
    places = {
        str(path.relative_to(ROOT))
        for folder in ("sede_kernels", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"os\.replace\(|os\.rename\(|mkstemp\(|\.rename\(", path.read_text("utf-8"))
        or re.search(r"(?:part|temporary|tmp)\w*\.replace\(", path.read_text("utf-8"))
    }
    assert places == {"sede_kernels/whole_file.py", "sede_kernels/training/files.py"}
