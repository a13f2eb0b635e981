"""Read one part of a ``*_precomp`` folder of the SCAN family, checked before training starts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sede_kernels.training.data.glyphs import SOURCES
from sede_kernels.training.data.split import PARTS
from sede_kernels.training.data.text import Vocabulary
from sede_kernels.training.files import UserError, read_manifest, verify_manifest

Ints = np.ndarray[Any, np.dtype[np.int64]]

_CHECK_WHOLE_BYTES = 1 << 30  # features up to this size are searched for NaN when opened
_LARGEST = 1e15  # of a feature: the square of a larger one leaves fp32 in the first layer
_BOM = "\ufeff"  # a byte order mark names no word, wherever files were joined
_FAMILY_MIN_COUNT = 4  # rarer words are <unk>, where the folder brings no vocabulary


@dataclass
class Part:
    """Images and captions of one part.

    Attributes:
        name: ``folder/part``, for messages.
        features: (N0, R, F) float16 or float32, memory mapped.
        rows: (N,) the row of each distinct image in ``features``.
        captions: C captions.
        image_of: (C,) the image (0..N-1) of each caption.
        pairs: (P, 2) all correct (caption, image) pairs; more than C where a caption has
            several owners.
        image_ids: (N,) int64 tensor: equal where two images share a caption, directly or through
            others; such images are no negatives of each other's captions.
        sentences: (C, S) frozen sentence embeddings, memory mapped, or None.
    """

    name: str
    features: np.ndarray[Any, Any]
    rows: Ints
    captions: list[str]
    image_of: Ints
    pairs: Ints
    image_ids: Tensor
    sentences: np.ndarray[Any, Any] | None = None

    def regions(self, images: Sequence[int] | Ints) -> Tensor:
        """Region features of some images, (B, R, F) float32."""
        rows = self.rows[np.asarray(images)]
        block = _float32(self.features[rows])
        if not _fits(block):
            raise UserError(_unfit(f"{self.name}_ims.npy", block, rows))
        return torch.from_numpy(block)

    def sentence_rows(self, captions: Sequence[int] | Ints) -> Tensor | None:
        """Sentence embeddings of some captions, (B, S) float32, or None where there are none."""
        if self.sentences is None:
            return None
        rows = np.asarray(captions)
        block = _float32(self.sentences[rows])
        if not _fits(block):
            raise UserError(_unfit(f"the sentence embeddings of {self.name}", block, rows))
        return torch.from_numpy(block)


def _float32(block: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused
        return np.asarray(block, np.float32)


def _fits(block: np.ndarray[Any, Any]) -> bool:
    """Whether all numbers are finite and small enough to be squared; false for a NaN."""
    return bool(block.min() >= -_LARGEST and block.max() <= _LARGEST)


def _unfit(where: str, block: np.ndarray[Any, Any], rows: Any) -> str:
    """The sentence for the first row of float32 numbers that do not fit."""
    flat = block.reshape(len(block), -1)
    bad = int((~(np.abs(flat) <= _LARGEST).all(1)).argmax())
    values = flat[bad]
    value = values[~(np.abs(values) <= _LARGEST)][0]
    row = int(rows[bad])
    if not np.isfinite(value):
        return f"{where} holds a NaN or infinite feature in row {row}: compute that row again."
    return (
        f"{where} holds {value:g} in row {row}: expected features within {_LARGEST:g}; scale them "
        "or compute that row again."
    )


def find_folder(data: str, home: Path) -> Path:
    """The folder of a data set: a path, or the name of a prepared one.

    Raises:
        UserError: neither is there; the message says what to run.
    """
    for folder in (_expanded(data), home / f"{data}_precomp"):
        if data and (folder / "train_caps.txt").exists():
            return folder
    base, *rest = data.split("_")
    if base in SOURCES and "/" not in data:
        limit = next((f" --limit {word}" for word in rest if word.isdigit()), "")
        raise UserError(
            f"the set {data!r} is not prepared under {home}: run `sede prepare {base}{limit}`."
        )
    raise UserError(
        f"there is no data set {data!r}: expected a folder with train_ims.npy and train_caps.txt, "
        f"or the name of a prepared set ({', '.join(SOURCES)})."
    )


def _expanded(data: str) -> Path:
    try:
        return Path(data).expanduser()
    except RuntimeError:  # ~somebody who has no home here
        return Path(data)


def check_folder(folder: Path) -> None:
    """Compare a prepared folder with its checksums; folders without a manifest pass."""
    verify_manifest(
        folder, f"delete {folder} and run `sede prepare` again (features come from the cache)."
    )


def load_vocabulary(folder: Path) -> Vocabulary:
    """``vocab.json`` of the folder, or the words of the training captions seen 4 times or more."""
    if (folder / "vocab.json").exists():
        return Vocabulary.load(folder / "vocab.json")
    words = Vocabulary.build(_read_lines(folder / "train_caps.txt"), _FAMILY_MIN_COUNT)
    if len(words) == len(Vocabulary.build(())):
        print(
            f"No word of {folder / 'train_caps.txt'} occurs {_FAMILY_MIN_COUNT} times or more, so "
            "the model knows none: a vocab.json beside it says which words count.",
            file=sys.stderr,
        )
    return words


def load_part(folder: Path, part: str, text_embeddings: str = "") -> Part:
    """Open ``<part>_ims.npy``, ``<part>_caps.txt`` and the files that say which belongs to which.

    With ``<part>_index.txt`` each caption has an image row. Without it, ids of which there is one
    a caption tell the images apart; else captions / images must be whole (1 or 5, usually), in
    order. Feature files that repeat each image for every caption are recognised, whether their
    ids number images or captions. With
    ``text_embeddings`` each caption also has a row in ``<part>_<text_embeddings>.npy``.

    Raises:
        UserError: a file is missing, damaged or does not fit the others.
    """
    if part not in PARTS and not (folder / f"{part}_caps.txt").exists():
        raise UserError(f"{folder} has no part {part!r}: choose from {', '.join(PARTS)}.")
    name = f"{folder}/{part}"
    features = _open_features(folder / f"{part}_ims.npy")
    captions = _read_lines(folder / f"{part}_caps.txt")
    rows, image_of = _match(folder, part, features, len(captions))
    manifest = read_manifest(folder) or {}
    pairs = np.stack([np.arange(len(captions)), image_of], 1)
    if manifest.get("shared_captions_are_correct"):
        pairs = _all_owners(captions, image_of)
    ids = _linked(pairs, len(rows))
    sentences = None
    if text_embeddings:
        sentences = _open_sentences(folder / f"{part}_{text_embeddings}.npy", len(captions))
    return Part(name, features, rows, captions, image_of, pairs, ids, sentences)


def read_array(path: Path, expected: str) -> np.ndarray[Any, Any]:
    """One memory mapped array.

    Raises:
        UserError: the file is missing, damaged or holds something else; it names ``expected``.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: expected {expected}.")
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of any kind: numpy parses the header as Python
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{path} is not a whole .npy file ({reason[:160]}): copy or prepare it again."
        ) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise UserError(
            f"{path} is an .npz archive of arrays: expected one .npy array, {expected}; save it "
            "with numpy.save."
        )
    return array


def _open_sentences(path: Path, captions: int) -> np.ndarray[Any, Any]:
    rows = read_array(path, "sentence embeddings (captions, numbers)")
    if rows.ndim != 2 or len(rows) != captions or 0 in rows.shape or rows.dtype.kind != "f":
        raise UserError(
            f"{path} must hold floats ({captions} captions, numbers), "
            f"got {rows.dtype} {rows.shape}."
        )
    _refuse_nan(path, rows)
    return rows


def _refuse_nan(path: Path, rows: np.ndarray[Any, Any]) -> None:
    """Search arrays up to 1 GiB; of larger ones, each batch is looked at when it is read."""
    if rows.nbytes <= _CHECK_WHOLE_BYTES:
        for start in range(0, len(rows), 256):
            block = _float32(rows[start : start + 256])
            if not _fits(block):
                raise UserError(_unfit(str(path), block, range(start, start + len(block))))


def _open_features(path: Path) -> np.ndarray[Any, Any]:
    features = read_array(path, "region features (images, regions, numbers)")
    if features.ndim == 2:
        features = features[:, None]
    if features.ndim != 3 or 0 in features.shape or features.dtype.kind != "f":
        raise UserError(
            f"{path} must hold floats (images, regions, numbers), "
            f"got {features.dtype} {features.shape}."
        )
    _refuse_nan(path, features)
    return features


def _read_lines(path: Path) -> list[str]:
    if not path.exists():
        raise UserError(f"{path} is missing: expected one caption a line.")
    try:
        # Only newlines end a caption: splitlines() would also cut at U+0085 or U+2028.
        text = path.read_text(encoding="utf-8").replace(_BOM, "")
        lines = text.removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from error
    if lines == [""]:
        raise UserError(f"{path} is empty: expected one caption a line.")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{path} has an empty caption in line {number}.")
        if "\0" in line:  # UTF-16 without a mark is such a text
            raise UserError(f"{path} holds a zero byte in line {number}: save it as UTF-8 text.")
    return [line.strip() for line in lines]


def read_numbers(path: Path) -> Ints | None:
    """Whole numbers, one a line; None where there is no such file.

    Raises:
        UserError: they are no whole numbers of 64 bits.
    """
    if not path.exists():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").replace(_BOM, "").split()
    try:
        return np.array([int(line) for line in lines], np.int64)
    except ValueError as error:
        raise UserError(f"{path} must hold whole numbers, one per line ({error}).") from error
    except OverflowError as error:
        raise UserError(
            f"{path} must hold whole numbers of 64 bits, one per line, "
            f"got {max(lines, key=len)!r}: number the images anew."
        ) from error


def _match(
    folder: Path, part: str, features: np.ndarray[Any, Any], captions: int
) -> tuple[Ints, Ints]:
    """Rows of the distinct images, and the image of each caption."""
    images = len(features)
    copies = images == captions and _repeats(features, 5)
    index = read_numbers(folder / f"{part}_index.txt")
    if index is not None:
        if len(index) != captions or index.min() < 0 or index.max() >= images:
            raise UserError(
                f"{folder}/{part}_index.txt must hold a row below {images} for each of the "
                f"{captions} captions, got {len(index)} numbers"
                + (f" from {index.min()} to {index.max()}." if len(index) else ".")
            )
        return np.arange(images), index
    ids = read_numbers(folder / f"{part}_ids.txt")
    if ids is not None and len(ids) not in (images, captions):
        raise UserError(
            f"{folder}/{part}_ids.txt has {len(ids)} lines for {images} images and {captions} "
            "captions: the files do not belong together."
        )
    if ids is not None and len(ids) == captions:
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))  # ids numbered by first appearance
        numbers_captions = copies and len(first) == captions  # ids of captions, as COCO has
        if (images == captions or len(first) == images) and not numbers_captions:
            rows = np.sort(first) if images == captions else np.arange(images)
            return rows, rank[inverse]
    if captions % images:
        raise UserError(
            f"{folder}/{part}_caps.txt has {captions} captions for {images} images in "
            f"{part}_ims.npy: expected 1 or 5 captions per image, or a {part}_index.txt."
        )
    each = captions // images
    if copies:
        return np.arange(0, images, 5), np.arange(captions) // 5
    return np.arange(images), np.arange(captions) // each


def _repeats(features: np.ndarray[Any, Any], times: int) -> bool:
    """Whether each image is stored several times in a row, judged by the first and last groups."""
    if len(features) % times:
        return False
    starts = {0, len(features) // times // 2 * times, len(features) - times}
    return all((features[s : s + times] == features[s]).all() for s in starts)


def _all_owners(captions: list[str], image_of: Ints) -> Ints:
    """Every caption with every image of the same wording."""
    owners: dict[str, list[int]] = {}
    for caption, image in zip(captions, image_of.tolist(), strict=True):
        owners.setdefault(caption, []).append(image)
    return np.array(
        [(c, image) for c, caption in enumerate(captions) for image in sorted({*owners[caption]})],
        np.int64,
    )


def _linked(pairs: Ints, images: int) -> Tensor:
    """The smallest image of each set of images that captions link."""
    parent = list(range(images))

    def root(image: int) -> int:
        while parent[image] != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    first: dict[int, int] = {}
    for caption, image in pairs.tolist():
        a, b = root(first.setdefault(caption, image)), root(image)
        parent[max(a, b)] = min(a, b)
    return torch.tensor([root(image) for image in range(images)], dtype=torch.int64)
