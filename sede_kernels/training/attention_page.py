"""A page of attention maps: a picture, what the model attends to, and what erasing leaves."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sede_kernels.training.analysis import encode_pairs, entropy, erase_rows, pair_attention
from sede_kernels.training.data.precomp import Ints, Part
from sede_kernels.training.data.text import tokenize
from sede_kernels.training.gallery import Gallery
from sede_kernels.training.models import Erasing, RetrievalModel
from sede_kernels.training.pictures import (
    GREY,
    INK,
    PAPER,
    draw_sample,
    fit,
    font,
    save_page,
)
from sede_kernels.training.similarities import Floats

USUAL = Erasing("low")  # shown for a model that erases nothing
_SIZE, _GAP, _HEAD, _TOP, _COLUMNS = 144, 12, 30, 92, 2  # pixels, and rows side by side
_HEAT = np.array([178.0, 24.0, 43.0])  # colour of the most attended region
_ERASED = np.array([150.0, 158.0, 168.0])
_OUTLINED = 3  # boxes, where boxes overlap
_PAIRS = 8


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one right pair.

    Attributes:
        caption: its words.
        image: its number in the part.
        before: (R,) attention; of one word where each word has its own.
        after: (R,) the same after erasing, 0 where the region is erased.
        word: whose attention it is, or nothing.
    """

    caption: str
    image: int
    before: Floats
    after: Floats
    word: str = ""


@torch.no_grad()
def attention_maps(
    model: RetrievalModel, part: Part, words: list[list[int]], captions: list[int]
) -> list[AttentionMap] | None:
    """Attention of some captions' right pairs before and after erasing.

    Where each word attends by itself, of the word that loses most regions: a mean over words would
    hide a region as soon as one word keeps it.

    Returns:
        None where the model has no attention over regions.
    """
    model.eval()
    rows = np.asarray(captions)
    found = pair_attention(model, *encode_pairs(model, part, words, rows))
    if found is None:
        return None
    attention, real = found
    erased = erase_rows(attention, model.erasing or USUAL)
    lost = ((attention > 0) & (erased <= 0)).sum(2).masked_fill(real <= 0, -1)
    chosen = lost.argmax(dim=1)
    rows_of = torch.arange(len(captions), device=chosen.device)
    before, after = (side[rows_of, chosen].cpu().numpy() for side in (attention, erased))
    counts = real.sum(1).long().tolist()
    return [
        AttentionMap(
            part.captions[c],
            int(part.image_of[c]),
            before[i],
            after[i],
            _word(part.captions[c], int(chosen[i]), counts[i]),
        )
        for i, c in enumerate(captions)
    ]


def _word(caption: str, place: int, count: int) -> str:
    """The word at this place of a caption of ``count`` places; nothing for one of one place."""
    tokens = tokenize(caption)
    place -= (count - len(tokens)) // 2  # marks of the beginning and the end
    return tokens[place] if count > 1 and 0 <= place < len(tokens) else ""


def shown_images(part: Part) -> list[int]:
    """The images of the page, drawn by the same fixed seed as the captions of the results page."""
    images: list[int] = part.image_of[draw_sample(part, _PAIRS)].tolist()
    return images


def draw_attention(
    model: RetrievalModel,
    part: Part,
    words: list[list[int]],
    gallery: Gallery,
    path: Path,
    *,
    title: str,
) -> str:
    """Write a page of the attention over regions before and after erasing.

    Args:
        model: trained.
        part: images and captions.
        words: numbers of the captions' words.
        gallery: pictures of the images, and the boxes of their regions.
        path: PNG to write.
        title: of the page.

    Returns:
        Why nothing was drawn, or an empty text.
    """
    maps = attention_maps(model, part, words, draw_sample(part, _PAIRS))
    if maps is None:
        return "No page of attention: this model has no attention over regions."
    cells = [gallery.boxes(one.image, _SIZE, len(one.before)) for one in maps]
    places = [cell for cell in cells if cell is not None]
    if len(places) < len(maps):
        return (
            f"No page of attention: {part.name}_boxes.npy is missing, with left, top, right and "
            f"bottom of each of the {part.features.shape[1]} regions."
        )
    erasing = model.erasing or USUAL
    least = "least" if erasing.side == "low" else "most"
    of_word = " of one word" if any(one.word for one in maps) else ""
    note = (
        f"Test pair: picture, attention{of_word}, what is left when the regions attended {least} "
        f"are erased (rule {erasing.rule}; grey: erased)."
    )
    more = []
    if any(map(_overlap, places)):
        more.append(f"Outlined: the {_OUTLINED} regions attended most.")
    if model.erasing is None:
        more.append("This model erases nothing.")
    save_page(_page(maps, places, gallery, title, (note, " ".join(more))), path)
    return ""


def _page(
    maps: list[AttentionMap],
    places: list[Ints],
    gallery: Gallery,
    title: str,
    notes_above: tuple[str, str],
) -> Any:
    from PIL import Image, ImageDraw

    rows = math.ceil(len(maps) / _COLUMNS)
    width, height = 3 * (_SIZE + _GAP) + 2 * _GAP, _HEAD + _SIZE + 32
    page = Image.new("RGB", (_COLUMNS * width + 2 * _GAP, _TOP + rows * height), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((2 * _GAP, 16), title, INK, font(26))
    for line, note in enumerate(notes_above):
        words = fit(pen, note, page.width - 4 * _GAP, font(14))
        pen.text((2 * _GAP, 56 + 18 * line), words, GREY, font(14))
    for number, one in enumerate(maps):
        column, row = divmod(number, rows)
        left, top = 2 * _GAP + column * width, _TOP + row * height
        letters = font(17, one.caption)
        words = fit(pen, f"“{one.caption}”", width - 4 * _GAP, letters)
        pen.text((left, top), words, INK, letters)
        picture = np.asarray(gallery.picture(one.image, _SIZE), np.float64)
        scale = float(max(one.before.max(), one.after.max()))
        tiles = (
            picture,
            *(heated(picture, side, places[number], scale) for side in (one.before, one.after)),
        )
        notes = (one.word, *(_describe(side) for side in (one.before, one.after)))
        for place, (tile, text) in enumerate(zip(tiles, notes, strict=True)):
            x = left + place * (_SIZE + _GAP)
            page.paste(Image.fromarray(tile.round().astype(np.uint8)), (x, top + _HEAD))
            pen.rectangle((x - 1, top + _HEAD - 1, x + _SIZE, top + _HEAD + _SIZE), outline=GREY)
            pen.text((x, top + _HEAD + _SIZE + 4), text, GREY, font(12, text))
    return page


def _describe(attention: Floats) -> str:
    kept, of = int((attention > 0).sum()), len(attention)
    nats = float(entropy(torch.from_numpy(attention)))
    return f"{kept} of {of} regions, {nats:.2f} nats"


def heated(picture: Any, attention: Floats, boxes: Ints, scale: float) -> Any:
    """The picture under its attention.

    Where boxes overlap, a pixel shows the most attended one; those attended most are outlined.

    Args:
        picture: (H, W, 3) float.
        attention: (R,) of its regions, 0 where erased.
        boxes: (R, 4) left, top, right, bottom of each in pixels.
        scale: the attention that is full red.

    Returns:
        (H, W, 3): red where attention is high, grey where every region is erased, the picture
        itself where there is no region.
    """
    values = np.full(picture.shape[:2], -1.0)
    for value, (left, top, right, bottom) in zip(attention.tolist(), boxes.tolist(), strict=True):
        area = values[top:bottom, left:right]
        np.maximum(area, value, out=area)
    values = values[:, :, None]
    strength = 0.75 * np.maximum(values, 0) / scale
    page = picture * (1 - strength) + _HEAT * strength
    page = np.where(values == 0, 0.45 * picture + 0.55 * _ERASED, page)
    if _overlap(boxes):
        for region in np.argsort(-attention, kind="stable")[:_OUTLINED].tolist():
            if attention[region] > 0:
                _outline(page, *boxes[region].tolist())
    return page


def _overlap(boxes: Ints) -> bool:
    """Whether a pixel lies in more than one box."""
    covered = np.zeros((boxes[:, 3].max(), boxes[:, 2].max()), bool)
    for left, top, right, bottom in boxes.tolist():
        covered[top:bottom, left:right] = True
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return bool(areas.sum() > covered.sum())


def _outline(page: Any, left: int, top: int, right: int, bottom: int) -> None:
    if left < right and top < bottom:  # a region without a place has an empty box
        page[top:bottom, [left, right - 1]] = _HEAT
        page[[top, bottom - 1], left:right] = _HEAT
