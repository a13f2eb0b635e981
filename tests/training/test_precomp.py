"""Folders of the SCAN family, whole and broken."""

import json
import shutil

import numpy as np
import pytest
import torch

from sede_kernels.training.data.precomp import (
    check_folder,
    find_folder,
    load_part,
    load_vocabulary,
)
from sede_kernels.training.data.text import PAD, UNKNOWN, Vocabulary, pad, tokenize
from sede_kernels.training.files import UserError

from .conftest import write_family_folder


def test_flickr_layout_has_five_captions_an_image_and_is_mapped(family):
    part = load_part(family, "train")
    assert isinstance(part.features, np.memmap)
    assert part.features.shape == (6, 36, 2048)
    assert part.image_of.tolist() == [i // 5 for i in range(30)]
    assert part.pairs.tolist() == [[c, c // 5] for c in range(30)]
    assert part.image_ids.tolist() == list(range(6))
    expected = torch.from_numpy(np.load(family / "train_ims.npy")[[4, 0]])
    assert torch.equal(part.regions([4, 0]), expected)


def test_one_caption_an_image(tmp_path):
    folder = write_family_folder(tmp_path / "p", images=7, each=1, width=8)
    assert load_part(folder, "test").image_of.tolist() == list(range(7))


@pytest.mark.parametrize("ids", [False, True], ids=["by-features", "by-ids"])
def test_repeated_images_count_once(tmp_path, ids):
    folder = write_family_folder(tmp_path / "p", images=4, width=8)
    features = np.load(folder / "test_ims.npy")
    np.save(folder / "test_ims.npy", np.repeat(features, 5, axis=0))
    (folder / "test_ids.txt").unlink()
    if ids:
        (folder / "test_ids.txt").write_text("".join(f"{9 - i // 5}\n" for i in range(20)))
    part = load_part(folder, "test")
    assert part.image_of.tolist() == [i // 5 for i in range(20)]
    assert torch.equal(part.regions(range(4)), torch.from_numpy(features))


def test_caption_ids_give_uneven_numbers_of_captions(tmp_path):
    folder = write_family_folder(tmp_path / "p", images=3, width=8)
    (folder / "dev_caps.txt").write_text("a\nb\nc\nd\n")
    (folder / "dev_ids.txt").write_text("70\n12\n12\n5\n")
    assert load_part(folder, "dev").image_of.tolist() == [0, 1, 1, 2]


def test_two_dimensional_features_are_one_region(tmp_path):
    folder = write_family_folder(tmp_path / "p", images=3, width=8)
    features = np.load(folder / "dev_ims.npy")[:, 0]
    np.save(folder / "dev_ims.npy", features)
    assert load_part(folder, "dev").features.shape == (3, 1, 8)


def test_index_and_shared_captions(tmp_path):
    folder = write_family_folder(tmp_path / "p", images=5, width=8)
    (folder / "dev_caps.txt").write_text("shop\nstore\nshop\nhouse\nstore\ntree\n")
    (folder / "dev_index.txt").write_text("0\n1\n1\n2\n3\n4\n")
    part = load_part(folder, "dev")
    assert part.pairs.tolist() == [[0, 0], [1, 1], [2, 1], [3, 2], [4, 3], [5, 4]]
    (folder / "manifest.json").write_text(
        json.dumps({"shared_captions_are_correct": True, "files": {}})
    )
    part = load_part(folder, "dev")
    assert part.pairs.tolist() == [
        [0, 0], [0, 1], [1, 1], [1, 3], [2, 0], [2, 1], [3, 2], [4, 1], [4, 3], [5, 4],
    ]  # fmt: skip
    assert part.image_ids.tolist() == [0, 0, 2, 0, 4], "0-1 by shop, 1-3 by store"


def test_prepared_icons_load(icons):
    part = load_part(icons, "train")
    assert len(part.rows) == 70
    assert part.regions([3]).dtype == torch.float32
    vocabulary = load_vocabulary(icons)
    assert vocabulary.words[PAD] == 0
    assert all(vocabulary.words[UNKNOWN] not in vocabulary.encode(c) for c in part.captions)
    check_folder(icons)
    assert find_folder("icons_100", icons.parent) == icons


def _cut(folder):
    path = folder / "train_ims.npy"
    path.write_bytes(path.read_bytes()[:-100])


def _rows(count):
    def change(folder):
        path = folder / "train_ims.npy"
        np.save(path, np.load(path)[:count])

    return change


def _nan(folder):
    features = np.load(folder / "train_ims.npy")
    features[2, 1, 0] = np.nan
    np.save(folder / "train_ims.npy", features)


def _seven_captions(folder):
    (folder / "train_ids.txt").unlink()
    (folder / "train_caps.txt").write_text("a\n" * 7)


def _write(name, text):
    return lambda folder: (folder / name).write_bytes(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "train_ims.npy").unlink(), "train_ims.npy is missing"),
        (_cut, "train_ims.npy is not a whole .npy file"),
        (_write("train_ims.npy", b""), "train_ims.npy is not a whole .npy file"),
        (_write("train_ims.npy", b"PK junk"), "train_ims.npy is not a whole .npy file"),
        (_rows(4), "train_ids.txt has 6 lines for 4 images and 30 captions"),
        (_nan, "NaN or infinite feature in row 2"),
        (
            lambda f: np.save(f / "train_ims.npy", np.ones((6, 3), np.int64)),
            r"must hold floats \(images, regions, numbers\), got int64 \(6, 1, 3\)",
        ),
        (lambda f: (f / "train_caps.txt").unlink(), "train_caps.txt is missing"),
        (_write("train_caps.txt", b""), "train_caps.txt is empty"),
        (_write("train_caps.txt", b"a\n\nb\n"), "empty caption in line 2"),
        (_write("train_caps.txt", b"caf\xe9\n"), "train_caps.txt is not UTF-8 text"),
        (_write("train_ids.txt", b"1\n2\n"), "train_ids.txt has 2 lines for 6 images"),
        (_write("train_ids.txt", b"1\ntwo\n"), "train_ids.txt must hold whole numbers"),
        (_write("train_index.txt", b"0\n1\n"), "must hold a row below 6 for each of the 30"),
        (_write("train_index.txt", b"6\n" * 30), "got 30 numbers from 6 to 6"),
        (_seven_captions, "has 7 captions for 6 images"),
    ],
    ids=[
        "no-features", "cut", "empty-npy", "not-npy", "fewer-rows", "nan", "integers",
        "no-captions", "empty-captions", "empty-line", "latin-1", "few-ids", "word-id",
        "short-index", "index-out-of-range", "uneven",
    ],
)  # fmt: skip
def test_broken_files_get_one_sentence(tmp_path, damage, message):
    folder = write_family_folder(tmp_path / "p", width=4)
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_part(folder, "train")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [b"{", b"[]", b'{"word2idx": {"<pad>": 0}}', b'{"word2idx": {"<pad>": 0, "<unk>": 7}}'],
    ids=["cut", "list", "no-unk", "gap"],
)
def test_broken_vocabulary(tmp_path, text):
    (tmp_path / "vocab.json").write_bytes(text)
    with pytest.raises(UserError, match=r"vocab.json is not a"):
        load_vocabulary(tmp_path)


def test_damaged_manifest(icons, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(icons, copy)
    (copy / "manifest.json").write_text('{"files"')
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        check_folder(copy)
    shutil.copy(icons / "manifest.json", copy)
    (copy / "test_caps.txt").unlink()
    with pytest.raises(UserError, match=r"test_caps.txt is missing"):
        check_folder(copy)


def test_vocabulary_without_a_file_keeps_words_seen_four_times(tmp_path):
    (tmp_path / "train_caps.txt").write_text("A dog runs.\n" * 4 + "A rare cat.\n")
    vocabulary = load_vocabulary(tmp_path)
    assert set(vocabulary.words) - {PAD, "<start>", "<end>", UNKNOWN} == {"a", "dog", "runs", "."}
    unknown = vocabulary.words[UNKNOWN]
    assert vocabulary.encode("rare dog") == [unknown, vocabulary.words["dog"]]
    (tmp_path / "vocab.json").write_text(vocabulary.to_json())
    assert Vocabulary.load(tmp_path / "vocab.json").words == vocabulary.words


def test_tokenize_and_pad():
    assert tokenize("Médaille d'or, 1st!") == ["médaille", "d", "'", "or", ",", "1st", "!"]
    words, lengths = pad([[5], [6, 7, 8]])
    assert words.tolist() == [[5, 0, 0], [6, 7, 8]]
    assert lengths.tolist() == [1, 3]
