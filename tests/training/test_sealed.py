"""A checkpoint with one flipped bit is refused; files are written where nobody planted a link."""

import errno
import io
import os
import stat
import zipfile

import numpy as np
import pytest
import torch

from sede_kernels.training import checkpoint, files, sealed
from sede_kernels.training.files import UserError

STATE = {"model": {"weight": torch.arange(6.0).view(2, 3)}, "place": [1, 2, 3], "name": "x"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    return path


@pytest.fixture
def old(tmp_path):
    """As version 0.1.0 wrote it: no checksum of the whole."""
    path = tmp_path / "old.pt"
    torch.save({"format": 1, **STATE}, path)
    return path


def places(whole: bytes) -> list[int]:
    """Every seventh byte, and all of the end, where the archive's directory and checksum are."""
    return sorted({*range(0, len(whole), 7), *range(len(whole) - 150, len(whole))})


def loads_to_other_values(path) -> bool:
    """Whether a file does not load to the state; one that does not load is noticed as well."""
    try:
        state = torch.load(path, weights_only=True)
        same = torch.equal(state["model"]["weight"], STATE["model"]["weight"])
        return not same or [state["place"], state["name"]] != [STATE["place"], STATE["name"]]
    except Exception:
        return False


def test_every_flipped_bit_is_noticed(path):
    assert sealed.damage(path) is None
    whole = path.read_bytes()
    for place in places(whole):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        assert sealed.damage(path) is not None, place


def test_a_flipped_bit_in_a_file_of_the_first_version_gives_no_other_values(old):
    assert sealed.damage(old) is None
    assert checkpoint.load(old, ("model",))["place"] == [1, 2, 3]
    whole, noticed = old.read_bytes(), 0
    for place in places(whole):
        old.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        if sealed.damage(old) is None:  # padding, dates, permissions
            assert not loads_to_other_values(old), place
        else:
            noticed += 1
    assert noticed > 100


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("version", ["path", "old"])
def test_a_cut_file_is_refused_in_one_sentence(version, share, request):
    file = request.getfixturevalue(version)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=rf"{file.name} is damaged \(.*\): put a copy") as told:
        checkpoint.load(file)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"junk", "is damaged"),
        (b"PK\x05\x06" + bytes(18), "is damaged"),
        ([1, 2], "no checkpoint of this package"),
        ({"format": 7}, "has checkpoint format 7, this version reads 1"),
        ({"format": 1}, "has no entry 'model'"),
        ({"format": 1, "model": print}, "no checkpoint of this package"),
    ],
    ids=["text", "empty-zip", "list", "format", "entries", "code"],
)
def test_other_files_are_refused_in_one_sentence(content, words, tmp_path):
    path = tmp_path / "best.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=words) as told:
        checkpoint.load(path, ("model",))
    assert "\n" not in str(told.value) and str(path) in str(told.value)


def test_a_sealed_file_stays_a_file_of_torch(path):
    state = torch.load(path, weights_only=True)
    assert torch.equal(state["model"]["weight"], STATE["model"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert archive.comment.startswith(b"sede-kernels sha256:")
        assert archive.testzip() is None
    with pytest.raises(ValueError, match="no zip archive"):
        sealed.seal(io.BytesIO(b"something else" * 3))


def test_names_of_unfinished_files_cannot_be_foreseen(tmp_path):
    """Whoever foresees the name could plant a link there and have another file overwritten."""
    names = set()
    for _ in range(5):
        with files.atomic_file(tmp_path / "last.pt") as handle:
            names |= {name for name in os.listdir(tmp_path) if name.endswith(".tmp")}
            handle.write(b"x")
    assert len(names) == 5
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("write", ["file", "folder"])
def test_a_planted_link_is_not_followed(write, tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda size: "f00d")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "file").write_text("mine")
    planted = tmp_path / ".out.f00d.tmp"
    planted.symlink_to(tmp_path / "target" / ("file" if write == "file" else ""))
    with pytest.raises(FileExistsError):
        if write == "file":
            files.write_text(tmp_path / "out", "theirs")
        else:
            with files.atomic_folder(tmp_path / "out") as staging:
                (staging / "file").write_text("theirs")
    assert (tmp_path / "target" / "file").read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_modes_are_those_of_open(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_array(tmp_path / "a.npy", np.zeros(2))
        checkpoint.save(tmp_path / "a.pt", STATE)
        with files.atomic_folder(tmp_path / "a") as staging:
            files.write_text(staging / "b", "b")
    finally:
        os.umask(before)
    found = {
        name: stat.S_IMODE((tmp_path / name).stat().st_mode)
        for name in ("a.npy", "a.pt", "a", "a/b")
    }
    assert found == {"a.npy": 0o640, "a.pt": 0o640, "a": 0o750, "a/b": 0o640}


def test_what_a_kill_left_is_removed_by_name(tmp_path):
    mine = [".last.pt.123.tmp", ".best.pt.00ff00ff00ff00ff.tmp", ".set_precomp.9.old"]
    others = [".last.pt.tmp", ".lastXpt.1.tmp", ".notes.1.tmp", "last.pt", ".last.pt.xyz.tmp"]
    for name in (*mine, *others):
        (tmp_path / name).touch()
    (tmp_path / mine[2]).unlink()
    (tmp_path / mine[2]).mkdir()
    (tmp_path / mine[2] / "inside").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "inside").touch()
    (tmp_path / ".best.pt.7.tmp").symlink_to(tmp_path / "kept")
    removed = files.remove_leftovers(tmp_path, "last.pt", "best.pt", "*_precomp")
    assert sorted(path.name for path in removed) == sorted([*mine, ".best.pt.7.tmp"])
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "kept"])
    assert (tmp_path / "kept" / "inside").exists()


def test_a_folder_that_cannot_be_put_in_place_leaves_the_earlier_one(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with files.atomic_folder(out) as staging:
        (staging / "file").write_text("first")
    replace = os.replace

    def fails_once_the_way_is_free(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EACCES, "a scanner holds it")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_once_the_way_is_free)
    with pytest.raises(OSError, match="a scanner holds it"), files.atomic_folder(out) as staging:
        (staging / "file").write_text("second")
    assert (out / "file").read_text() == "first" and os.listdir(tmp_path) == ["out"]
