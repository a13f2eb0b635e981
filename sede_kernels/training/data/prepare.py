"""``sede prepare``: from a font to two folders in the layout of the SCAN family."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from sede_kernels.training.data.draw import IMAGE_SIZE, Pen, Picture, distinct_pictures
from sede_kernels.training.data.features import extract
from sede_kernels.training.data.glyphs import SOURCES
from sede_kernels.training.data.split import PARTS, SEED, SPLITS, Rows
from sede_kernels.training.data.text import Vocabulary
from sede_kernels.training.files import (
    UserError,
    atomic_folder,
    read_manifest,
    remove_leftovers,
    require,
    verify_manifest,
    write_array,
    write_json,
    write_manifest,
    write_text,
)
from sede_kernels.training.lock import hold

_RECIPE = 1  # rises when the same source gives other files
SMALLEST = 30  # images: below it dev and test are too small to mean anything
_LARGEST = 10**9


def set_name(name: str, limit: int | None = None, split: str = "") -> str:
    """Name under which a set can be trained on: ``icons``, ``icons_600``, ``icons_grouped``."""
    return f"{name}{'' if limit is None else f'_{limit}'}{split}"


def check_limit(limit: int | None) -> None:
    """Refuse a number of images that is too small to be split, or no size.

    Raises:
        UserError: with the bound.
    """
    if limit is not None and not SMALLEST <= limit <= _LARGEST:
        bound = f"least {SMALLEST}" if limit < SMALLEST else f"most {_LARGEST}"
        raise UserError(f"--limit must be at {bound} images, got {limit}.")


def prepare(name: str, home: Path, *, limit: int | None = None) -> list[Path]:
    """Draw, merge, split, compute features and write; what is there and whole is kept.

    Args:
        name: a set of ``SOURCES``.
        home: data folder; the sets come under it, features are cached in ``cache/``.
        limit: number of distinct images to take (the same first ones for every limit), or all.

    Returns:
        The folders: the random split and the one grouped by base name.

    Raises:
        UserError: unknown set, limit too small, package missing or damaged, or another process
            prepares the same set here.
    """
    if name not in SOURCES:
        raise UserError(f"there is no set {name!r} to prepare: choose from {', '.join(SOURCES)}.")
    check_limit(limit)
    require({"PIL": "pillow", "tqdm": "tqdm"}, f"`sede prepare {name}`")
    folders = [home / f"{set_name(name, limit, split)}_precomp" for split in SPLITS]
    if all(_is_ready(folder) for folder in folders):
        return folders
    cache = home / "cache" / name
    with hold(cache, f"sede prepare {name}"):
        left = remove_leftovers(home, *(folder.name for folder in folders))
        left += remove_leftovers(cache, "*.npz")
        if left:
            names = ", ".join(path.name for path in left)
            print(f"Removed what a killed process was writing: {names}", file=sys.stderr)
        source = SOURCES[name]()
        pictures, counts = distinct_pictures(source)
        print(", ".join(f"{number:,} {what}" for what, number in counts.items() if number))
        # A fixed order makes a smaller limit a prefix of a larger one, which then finds its cache.
        order = np.random.default_rng(SEED).permutation(len(pictures))[:limit]
        pictures = [pictures[int(row)] for row in order]
        pen = Pen(source.font, source.font_size)
        features = extract(pictures, pen, cache, f"features of {name}")
        facts = {"name": name, "recipe": _RECIPE, "font": str(source.font.name), **source.facts}
        facts |= {"font_size": str(source.font_size), "image_size": str(IMAGE_SIZE)}
        for folder, split in zip(folders, SPLITS, strict=True):
            with atomic_folder(folder) as staging:
                _write(staging, pictures, features, SPLITS[split](pictures), facts)
    return folders


def _is_ready(folder: Path) -> bool:
    """Whether a folder is whole and of this recipe; says so when it is damaged."""
    try:
        manifest = read_manifest(folder)
        if manifest is None or manifest.get("recipe") != _RECIPE:
            return False
        verify_manifest(folder, "writing the folder again.")
    except UserError as error:
        print(error, file=sys.stderr)
        return False
    return True


def _write(
    folder: Path,
    pictures: list[Picture],
    features: np.ndarray[Any, Any],
    parts: dict[str, Rows],
    facts: dict[str, object],
) -> None:
    for part in PARTS:
        rows = parts[part]
        chosen = [pictures[row] for row in rows]
        owned = [(i, caption) for i, p in enumerate(chosen) for caption in p.names]
        write_array(folder / f"{part}_ims.npy", features[rows])
        write_text(folder / f"{part}_caps.txt", "".join(f"{text}\n" for _, text in owned))
        write_text(folder / f"{part}_index.txt", "".join(f"{i}\n" for i, _ in owned))
        write_text(folder / f"{part}_ids.txt", "".join(f"{row}\n" for row in rows))
        drawings = [{"glyph": p.text, "names": p.names} for p in chosen]
        write_json(folder / f"{part}_images.json", drawings)
    vocabulary = Vocabulary.build(
        caption for row in parts["train"] for caption in pictures[row].names
    )
    write_text(folder / "vocab.json", vocabulary.to_json())
    sizes = {part: len(rows) for part, rows in parts.items()}
    write_manifest(folder, {**facts, "images_of": sizes, "shared_captions_are_correct": True})
