"""Odd files in a folder of one's own: a byte order mark is no word, the rest gets a sentence."""

import json
import shutil

import numpy as np
import pytest
import torch

from sede_kernels.cli import main
from sede_kernels.training.data.precomp import load_part, load_vocabulary
from sede_kernels.training.evaluate import summarize
from sede_kernels.training.files import UserError
from sede_kernels.training.gallery import Drawings
from sede_kernels.training.similarities import Similarities

from .conftest import TINY, refused, write_family_folder

BOM = "\ufeff"


def features(change):
    """Save another array for the training features."""
    return lambda f: np.save(f / "train_ims.npy", change(np.load(f / "train_ims.npy")))


def set_to(value, dtype=np.float32):
    def change(array):
        array = array.astype(dtype)
        array[3, 1, 2] = value
        return array

    return features(change)


def text(name, change, encoding="utf-8"):
    def write(folder):
        path = folder / name
        path.write_bytes(change(path.read_text()).encode(encoding))

    return write


def npz(folder):
    np.savez(folder / "x.npz", a=np.ones((6, 3, 6)))
    (folder / "x.npz").replace(folder / "train_ims.npy")


def header(folder):
    """A header that is no literal of Python."""
    path = folder / "train_ims.npy"
    path.write_bytes(path.read_bytes().replace(b"'descr'", b"\0escr'("))


BROKEN = {
    "npz": (npz, "train_ims.npy is an .npz archive of arrays: expected one .npy array"),
    "header": (header, "train_ims.npy is not a whole .npy file"),
    "pickled": (features(lambda a: a.astype(object)), "is not a whole .npy file (Array can't"),
    "complex": (features(lambda a: a.astype(complex)), "must hold floats (images, regions"),
    "text": (features(lambda a: a.astype(str)), "must hold floats (images, regions, numbers)"),
    "records": (features(lambda a: np.zeros(6, "f4,f4")), "must hold floats (images, regions"),
    "scalar": (features(lambda a: np.float32(1)), "must hold floats (images, regions, numbers)"),
    "4-d": (features(lambda a: a[None]), "must hold floats (images, regions, numbers), got fl"),
    "no-images": (features(lambda a: a[:0]), "must hold floats (images, regions, numbers), got"),
    "no-regions": (features(lambda a: a[:, :0]), "must hold floats (images, regions, numbers)"),
    "1e30": (set_to(1e30), "train_ims.npy holds 1e+30 in row 3: expected features within 1e+15"),
    "-1e30": (set_to(-1e30), "train_ims.npy holds -1e+30 in row 3: expected features within"),
    "float64": (set_to(1e300, np.float64), "holds a NaN or infinite feature in row 3"),
    "half-inf": (set_to(np.inf, np.float16), "holds a NaN or infinite feature in row 3"),
    "folder": (
        lambda f: ((f / "train_ims.npy").unlink(), (f / "train_ims.npy").mkdir()),
        "train_ims.npy is not a whole .npy file",
    ),
    "big-ids": (
        text("train_ids.txt", lambda t: t.replace("1003", "1" + "0" * 30)),
        f"train_ids.txt must hold whole numbers of 64 bits, one per line, got '1{'0' * 30}'",
    ),
    "float-ids": (text("train_ids.txt", lambda t: t.replace("1003", "3.0")), "whole numbers, one"),
    "endless-ids": (text("train_ids.txt", lambda t: "9" * 5000), "must hold whole numbers"),
    "empty-ids": (text("train_ids.txt", lambda t: ""), "has 0 lines for 6 images and 30 captions"),
    "empty-index": (
        lambda f: (f / "train_index.txt").write_text(""),
        "train_index.txt must hold a row below 6 for each of the 30 captions, got 0 numbers.",
    ),
    "utf-16": (text("train_caps.txt", str, "utf-16"), "is not UTF-8 text (byte 0): save it as"),
    "utf-32": (text("train_caps.txt", str, "utf-32"), "is not UTF-8 text (byte 0): save it as"),
    "latin-1": (text("train_caps.txt", lambda t: t + "é", "latin-1"), "is not UTF-8 text (byte"),
    "bare-utf-16": (text("train_caps.txt", str, "utf-16-le"), "a zero byte in line 1: save it as"),
    "zero": (text("dev_caps.txt", lambda t: t + "A\0dog\n"), "dev_caps.txt holds a zero byte in l"),
    "only-bom": (text("train_caps.txt", lambda t: BOM), "train_caps.txt is empty"),
    "bom-line": (text("train_caps.txt", lambda t: t + BOM + "\n"), "empty caption in line 31"),
    "spaces": (text("train_caps.txt", lambda t: t + " \t\n"), "has an empty caption in line 31"),
    "two-ends": (text("train_caps.txt", lambda t: t + "\n"), "has an empty caption in line 31"),
    "one-less": (
        text("train_caps.txt", lambda t: t.partition("\n")[2]),
        "has 29 captions for 6 images in train_ims.npy: expected 1 or 5 captions per image",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_one_sentence_before_anything_is_created(name, tiny, tmp_path, capfd):
    damage, words = BROKEN[name]
    damage(tiny)
    said = refused(capfd, "train", "--data=tiny", *TINY, "--out", tmp_path / "run")
    assert words in said, said
    assert str(tiny) in said
    assert not (tmp_path / "run").exists()


SAME = {
    "bom": text("train_caps.txt", lambda t: BOM + t),
    "bom-in-the-middle": text("train_caps.txt", lambda t: t.replace("\nA", f"\n{BOM}A", 7)),
    "windows": text("train_caps.txt", lambda t: BOM + t.replace("\n", "\r\n")),
    "old-mac": text("train_caps.txt", lambda t: t.replace("\n", "\r")),
    "no-last-newline": text("train_caps.txt", lambda t: t.removesuffix("\n")),
    "spaces-around": text("train_caps.txt", lambda t: t.replace("\n", " \t\n ").strip(" ")),
    "bom-in-ids": text("train_ids.txt", lambda t: BOM + t.replace("\n", "\r\n")),
    "fortran": features(np.asfortranarray),
    "big-endian": features(lambda a: a.astype(">f4")),
    "float64": features(lambda a: a.astype(np.float64)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_data_in_another_form(name, tiny, tmp_path):
    expected, words = load_part(tiny, "train"), load_vocabulary(tiny)
    folder = tmp_path / "copy"
    shutil.copytree(tiny, folder)
    SAME[name](folder)
    part = load_part(folder, "train")
    assert part.captions == expected.captions
    assert load_vocabulary(folder).words == words.words
    assert part.image_of.tolist() == expected.image_of.tolist()
    assert torch.equal(part.regions(range(6)), expected.regions(range(6)))


def test_captions_of_rare_words_only_are_told(tiny, capfd):
    path = tiny / "train_caps.txt"
    lines = path.read_text().splitlines()
    path.write_text("".join(f"w{n} x{n}\n" for n in range(len(lines))))
    special = len(load_vocabulary(tiny))
    said = f"No word of {path} occurs 4 times or more, so the model knows none: a vocab.json"
    assert capfd.readouterr().err.startswith(said)
    path.write_text("".join(f"w{n // 4} x{n}\n" for n in range(len(lines))))
    assert len(load_vocabulary(tiny)) > special == 4
    assert capfd.readouterr().err == ""


def test_large_files_are_searched_batch_by_batch(tiny, monkeypatch):
    """Beyond the limit nothing is searched when opened; the batch with the row names it."""
    set_to(1e30)(tiny)
    sentences = np.ones((30, 5), np.float32)
    sentences[7, 0] = np.nan
    np.save(tiny / "train_e.npy", sentences)
    with pytest.raises(UserError, match=r"holds 1e\+30 in row 3"):
        load_part(tiny, "train")
    monkeypatch.setattr("sede_kernels.training.data.precomp._CHECK_WHOLE_BYTES", 0)
    part = load_part(tiny, "train", "e")
    assert part.regions([0, 1]).shape == (2, 3, 6)
    with pytest.raises(UserError, match=r"train_ims.npy holds 1e\+30 in row 3"):
        part.regions([5, 3, 1])
    assert part.sentence_rows([0, 1]).shape == (2, 5)
    with pytest.raises(UserError, match=r"embeddings of .*train holds a NaN .* in row 7"):
        part.sentence_rows([9, 7])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"files": []}', "is damaged"),
        ('{"files": {"train_caps.txt": {}}}', "is damaged"),
        ('{"files": {"train_caps.txt": 3}}', "is damaged"),
        ('{"files": {"train_caps.txt": {"bytes": "x", "sha256": ""}}}', "is damaged"),
        ("[" * 10**5, "is damaged"),
        ("\ufeff" + '{"files": {"gone": {"bytes": 1, "sha256": ""}}}', "gone is missing"),
        ('{"files": {"train_caps.txt": {"bytes": 1, "sha256": ""}}}', "bytes instead of 1"),
    ],
    ids=["list", "no-facts", "number", "text", "deep", "bom", "size"],
)
def test_damaged_manifests(content, words, tiny, tmp_path, capfd):
    (tiny / "manifest.json").write_text(content, encoding="utf-8")
    said = refused(capfd, "train", "--data=tiny", *TINY, "--out", tmp_path / "run")
    assert words in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    ["[", "3", "{}", "[3]", '[{"glyph": "x"}]', '[{"glyph": "x", "names": []}]', "[" * 10**5],
    ids=["cut", "number", "table", "numbers", "no-names", "empty-names", "deep"],
)
def test_damaged_descriptions_of_pictures(content, tiny):
    (tiny / "manifest.json").write_text(json.dumps({"name": "icons", "files": {}}))
    (tiny / "test_images.json").write_text(content)
    with pytest.raises(UserError, match=r"test_images.json (is damaged|describes 0 of 6 images)"):
        Drawings(tiny, "test", 6)
    (tiny / "manifest.json").write_text(json.dumps({"name": ["icons"], "files": {}}))
    with pytest.raises(UserError, match="has features but no pictures"):
        Drawings(tiny, "test", 6)


def test_one_region_and_a_last_batch_of_one_caption(tiny, tmp_path):
    """A batch norm has no spread of a single row: `vsrn` uses the running statistics for it."""
    for part in ("train", "dev", "test"):
        np.save(tiny / f"{part}_ims.npy", np.load(tiny / f"{part}_ims.npy")[:, 0])
    words = ["train", "--data=tiny", *TINY, "--model=vsrn", "--batch-size=29", "--epochs=2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0


def test_folds_without_a_caption():
    scores = Similarities(torch.zeros(4, 2))
    pairs = np.array([[0, 0], [1, 1]])
    assert summarize(scores, pairs).queries == (2, 2)
    with pytest.raises(UserError, match="images 2 to 3 have no caption"):
        summarize(scores, pairs, 2)


def test_eval_looks_before_it_scores(tiny, tmp_path, monkeypatch, capfd):
    """Folds, pages, widths and sentence embeddings of both runs are checked first."""
    other = write_family_folder(tmp_path / "wide", regions=3, width=8)
    for part in ("train", "dev", "test"):
        np.save(tiny / f"{part}_e.npy", np.ones((30, 5), np.float32))
    runs = {"one": ["--data=tiny"], "wide": [f"--data={other}"],
            "text": ["--data=tiny", "--text-embeddings=e"]}  # fmt: skip
    for name, words in runs.items():
        assert main(["train", *words, *TINY, "--out", str(tmp_path / name)]) == 0
    one, wide, text = (tmp_path / name for name in runs)
    assert main(["eval", str(one), "--beside", str(text)]) == 0
    beside = capfd.readouterr().out.rpartition("vse (beside)")[2]
    assert main(["eval", str(text)]) == 0
    alone = capfd.readouterr().out.rpartition("vse")[2]
    assert beside.split() == alone.split(), "the second run sees its own sentence embeddings"
    monkeypatch.setattr("sede_kernels.training.scoring.compare_part", None)
    for words, said in (
        (["--folds=4"], "--folds must divide the 6 images of this part, got 4"),
        (["--folds=0"], "--folds must divide the 6 images of this part, got 0"),
        (["--visualize", tmp_path], "--visualize takes the name of a PNG file"),
        (["--visualize", tmp_path / "p.png"], "has features but no pictures"),
        (["--beside", wide], f"{wide} expects regions of 8 numbers"),
        (["--beside", tmp_path], f"{tmp_path} is not a run"),
        (["--data="], "there is no data set ''"),
        (["--part="], "has no part ''"),
        (["--data", other], "expects regions of 6 numbers"),
    ):
        assert said in refused(capfd, "eval", one, *words)
    (tiny / "test_e.npy").unlink()
    assert "test_e.npy is missing" in refused(capfd, "eval", one, "--beside", text)
    np.save(tiny / "test_e.npy", np.ones((30, 4), np.float32))
    assert "expects sentence embeddings of 5 numbers" in refused(capfd, "eval", text)
