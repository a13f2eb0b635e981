"""What the pages of pictures show: one word's erasing, and a head over each of two runs."""

import numpy as np
import torch
from PIL import Image

from sede_kernels.training.analysis import encode_pairs, erase_rows, pair_attention
from sede_kernels.training.attention_page import attention_maps
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.pictures import PAPER, Hit, Search, font, results_page
from sede_kernels.training.run import build_model, load_corpus
from tests.training.conftest import write_family_folder


def test_attention_is_that_of_the_word_that_loses_most(tmp_path):
    """Every word hides some of nine regions; their mean over words would hide none."""
    folder = write_family_folder(tmp_path / "f30k_precomp", regions=9, width=12)
    corpus = load_corpus(str(folder), ("train", "test"))
    settings = {"model": "scan", "direction": "t2i", "dim": 8, "word_dim": 6}
    config = TrainConfig(**settings, erase="low", erase_rule="mean", smoothing=30.0)
    torch.manual_seed(0)
    model = build_model(config, 12, len(corpus.vocabulary)).eval()
    part, words = corpus.parts["test"], corpus.words["test"]
    chosen = [0, 7, 22]
    maps = attention_maps(model, part, words, chosen)
    with torch.no_grad():
        attention, real = pair_attention(
            model, *encode_pairs(model, part, words, np.asarray(chosen))
        )
        erased = erase_rows(attention, model.erasing)
    for row, one in enumerate(maps):
        lost = [
            int(((attention[row, q] > 0) & (erased[row, q] == 0)).sum())
            for q in range(int(real[row].sum()))
        ]
        word = lost.index(max(lost))
        np.testing.assert_array_equal(one.before, attention[row, word].numpy())
        np.testing.assert_array_equal(one.after, erased[row, word].numpy())
        assert (one.after == 0).sum() == max(lost) > 0
        assert one.word and one.word in one.caption.lower()


class Blank:
    """A gallery of white pictures."""

    def picture(self, image: int, size: int = 108) -> Image.Image:
        return Image.new("RGB", (size, size), PAPER)

    def name(self, image: int) -> str:
        return f"picture {image}"


def test_each_of_two_runs_has_its_head():
    searches = [Search("a query", [Hit(0, 0.5, True)], 0, 1, False) for _ in range(4)]
    alone = results_page(searches, Blank(), "title", "note")
    page = results_page(searches, Blank(), "title", "note", ("the first run", "the second"))
    assert page.height == alone.height + 44
    band = np.asarray(page.convert("L"))[98:134]
    for half in np.array_split(band, 2, axis=1):
        assert (half < 128).any(), "each column has a head"
    assert (np.asarray(alone.convert("L"))[80:95] > 250).all()


def test_accents_are_letters_and_no_boxes():
    """Pillow's own font draws its box for each of these; captions of emoji have them."""

    def drawn(letter, text):
        mask = font(40, text).getmask(letter)
        return bytes(mask), mask.size

    for letter in "éèœñüß":
        assert drawn(letter, "légèrement") != drawn("\U0010fffe", "légèrement"), letter
    assert drawn("a", "ascii") != drawn("a", "légèrement"), "plain captions keep their font"


def test_long_captions_stay_in_their_column():
    """A caption of forty words beside a second run's: cut with an ellipsis before the answer."""
    long = Search("word " * 40, [Hit(0, 0.5, False)], 1, 9, False)
    page = np.asarray(results_page([long, long], Blank(), "t", "n").convert("L"))
    gap = page[96 + 2 : 96 + 38, 640:655]
    assert (gap > 250).all(), "the place before the right one's rank is free"
