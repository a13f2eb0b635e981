"""``--images``: pages of a feature folder whose pictures are files and whose regions are boxes."""

import json
import runpy
import shutil
from pathlib import Path

import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image

from sede_kernels.cli import main
from sede_kernels.training.attention_page import heated
from sede_kernels.training.data.precomp import load_part
from sede_kernels.training.gallery import Drawings, Photographs, open_gallery
from sede_kernels.training.photographs import Boxes, read_picture

from .conftest import TINY, refused, write_family_folder

SIDE = 192  # pixels of a drawn icon


@pytest.fixture
def photographed(icons, tmp_path):
    """The tiny icons as somebody else's features: PNG files named by id, and boxes in pixels."""
    folder, pictures = tmp_path / "mine", tmp_path / "pictures" / "below"
    shutil.copytree(icons, folder)
    pictures.mkdir(parents=True)
    drawn = Drawings(folder, "test")
    ids = (folder / "test_ids.txt").read_text().split()
    for row, number in enumerate(ids):
        drawn.picture(row, SIDE).save(pictures / f"icon_{int(number):09d}.png")
    cells = drawn.boxes(0, SIDE, 36)
    np.save(folder / "test_boxes.npy", np.tile(cells.astype(np.float32), (len(ids), 1, 1)))
    for name in ("manifest.json", "test_images.json"):
        (folder / name).unlink()
    return folder, pictures.parent


def test_pages_from_files_equal_the_drawn_ones(icons, photographed, tmp_path, capfd):
    """The same icons as PNG files, the grid as boxes: the same pixels, searches and attention."""
    folder, pictures = photographed
    run = tmp_path / "run"
    words = ["--data=icons_100", "--model=scan", "--direction=t2i", "--erase", "--out", str(run)]
    assert main(["train", *words, *TINY]) == 0
    drawn, read = tmp_path / "drawn.png", tmp_path / "read.png"
    assert main(["eval", str(run), "--visualize", str(drawn)]) == 0
    with_files = ["--data", str(folder), "--images", str(pictures), "--visualize", str(read)]
    assert main(["eval", str(run), *with_files]) == 0
    assert f"Attention over regions: {tmp_path / 'read_attention.png'}" in capfd.readouterr().out
    for name in ("{}.png", "{}_attention.png"):
        one, other = (Image.open(tmp_path / name.format(word)) for word in ("drawn", "read"))
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    (folder / "test_boxes.npy").rename(folder / "test_ims_bbx.npy")
    assert main(["eval", str(run), *with_files]) == 0
    assert "No page of attention" not in capfd.readouterr().out
    (folder / "test_ims_bbx.npy").unlink()
    assert main(["eval", str(run), *with_files]) == 0
    assert "test_boxes.npy is missing, with left, top" in capfd.readouterr().out


@pytest.fixture
def photograph() -> Path:
    """A real photograph, 512 x 600, that comes with matplotlib."""
    return Path(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))


@pytest.fixture
def family_of_photographs(tmp_path, photograph):
    """Six images of four regions: one photograph, and the same turned in all ways."""
    folder = write_family_folder(tmp_path / "f30k", regions=4, width=6)
    pictures = tmp_path / "photos"
    pictures.mkdir()
    with Image.open(photograph) as whole:
        for turn in range(6):
            turned = whole.rotate(90 * turn, expand=True)
            turned.save(pictures / f"COCO_val2014_{1000 + turn:012d}.jpg")
    boxes = [[128, 60, 384, 300], [0, 0, 512, 300], [0, 0, 0, 0], [256, 300, 512, 500]]
    np.save(folder / "test_boxes.npy", np.tile(np.array(boxes, np.float32), (6, 1, 1)))
    return folder, pictures


def test_boxes_lie_on_the_photograph(family_of_photographs, photograph):
    """512 x 600 becomes 123 x 144, eleven pixels off the left edge; x 0.24."""
    folder, pictures = family_of_photographs
    part = load_part(folder, "test")
    gallery = open_gallery(folder, "test", part, pictures, shown=range(6))
    thumb = np.asarray(gallery.picture(0, 144))
    assert (thumb[:, :10] == 255).all(), "white beside a picture that is higher than wide"
    with Image.open(pictures / "COCO_val2014_000000001000.jpg") as whole:
        small = whole.convert("RGB").resize((123, 144), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(thumb[:, 10:133], np.asarray(small))
    expected = [
        [10 + 31, 14, 10 + 92, 72],
        [10, 0, 10 + 123, 72],
        [10, 0, 10, 0],
        [10 + 62, 72, 10 + 123, 120],
    ]
    np.testing.assert_array_equal(gallery.boxes(0, 144, 4), expected)
    assert gallery.name(2) == "A test dog, number 2 of 0."
    wide = gallery.boxes(1, 144, 4)  # turned: 600 x 512
    np.testing.assert_array_equal(wide[1], [0, 10, 123, 82])


def test_the_example_makes_a_folder_that_is_drawn(icons, tmp_path, capfd):
    """Seventeen regions, no square: their boxes place them; a region is the mean of its cells."""
    folder, pictures, run = (tmp_path / name for name in ("mine", "pictures", "run"))
    example = Path(__file__).parents[2] / "examples" / "feature_folder.py"
    runpy.run_path(str(example))["main"](icons, folder, pictures)
    grid = np.load(icons / "test_ims.npy")[3].astype(np.float32).reshape(6, 6, -1)
    regions = np.load(folder / "test_ims.npy")[3]
    np.testing.assert_allclose(regions[0], grid.mean((0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(regions[7], grid[1:4, 2:5].mean((0, 1)), rtol=1e-5, atol=1e-6)
    assert np.load(folder / "test_boxes.npy")[3, 7].tolist() == [64, 32, 160, 128]
    words = ["--data", str(folder), "--model=scan", "--direction=t2i", "--erase"]
    assert main(["train", *words, *TINY, "--out", str(run)]) == 0
    shown = ["--visualize", str(tmp_path / "p.png"), "--images", str(pictures)]
    assert main(["eval", str(run), *shown]) == 0
    assert "Attention over regions:" in capfd.readouterr().out
    page = np.asarray(Image.open(tmp_path / "p_attention.png").convert("RGB"), np.int64)
    assert (page == [178, 24, 43]).all(2).sum() > 500, "outlines of the regions attended most"


def test_heat_of_overlapping_boxes():
    """The most attended region wins; grey where all are erased; untouched where there is none."""
    picture = np.full((144, 144, 3), 200.0)
    boxes = np.array([[0, 0, 100, 100], [50, 50, 144, 144], [0, 0, 40, 40], [144, 0, 144, 0]])
    attention = np.array([0.5, 0.25, 0.0, 0.1], np.float32)
    page = heated(picture, attention, boxes, 0.5)
    red = np.array([178.0, 24.0, 43.0])
    np.testing.assert_allclose(page[60, 60], 0.25 * 200 + 0.75 * red)
    np.testing.assert_allclose(page[120, 120], 0.625 * 200 + 0.375 * red)
    np.testing.assert_allclose(page[20, 20], 0.25 * 200 + 0.75 * red, err_msg="one is not erased")
    np.testing.assert_allclose(page[120, 20], 200, err_msg="no region there")
    np.testing.assert_allclose(page[0, 50], red, err_msg="outline")
    np.testing.assert_allclose(page[143, 100], red, err_msg="outline")
    gone = heated(picture, attention * (0, 1, 1, 1), boxes, 0.5)
    np.testing.assert_allclose(gone[20, 20], 0.45 * 200 + 0.55 * np.array([150.0, 158.0, 168.0]))
    np.testing.assert_allclose(gone[60, 60], 0.625 * 200 + 0.375 * red)


def test_names_of_the_files(family_of_photographs):
    """A list of files wins over a mapping of ids, a mapping over numbers in the names."""
    folder, pictures = family_of_photographs
    part = load_part(folder, "test")
    numbered = Photographs(folder, "test", part, pictures)
    turned = np.asarray(numbered.picture(1, 30))
    names = {str(1000 + i): f"COCO_val2014_{1001 - i % 2:012d}.jpg" for i in range(6)}
    (folder.parent / "id_mapping.json").write_text(json.dumps(names))
    mapped = Photographs(folder, "test", part, pictures)
    np.testing.assert_array_equal(np.asarray(mapped.picture(0, 30)), turned)
    listed = [f"COCO_val2014_{1001 - i:012d}.jpg" for i in (1, 1, 1, 0, 1, 1)]
    (folder / "test_files.txt").write_text("\n".join(listed) + "\n")
    named = Photographs(folder, "test", part, pictures)
    np.testing.assert_array_equal(np.asarray(named.picture(3, 30)), turned)


def test_each_image_stored_five_times(family_of_photographs):
    """Features that repeat an image for every caption, ids of captions: one picture an image."""
    folder, pictures = family_of_photographs
    features = np.load(folder / "test_ims.npy")
    boxes = np.load(folder / "test_boxes.npy")
    boxes[:, 0] = np.arange(6)[:, None] + [0, 0, 10, 10]
    np.save(folder / "test_ims.npy", np.repeat(features, 5, axis=0))
    np.save(folder / "test_boxes.npy", np.repeat(boxes, 5, axis=0))
    (folder / "test_ids.txt").write_text("".join(f"{i}\n" for i in range(30)))
    listed = [f"COCO_val2014_{1000 + i // 5:012d}.jpg" for i in range(30)]
    (folder / "test_files.txt").write_text("\n".join(listed))
    part = load_part(folder, "test")
    gallery = Photographs(folder, "test", part, pictures)
    alone = np.asarray(read_picture(pictures / "COCO_val2014_000000001003.jpg"))
    np.testing.assert_array_equal(np.asarray(gallery.picture(3, 600))[44:556], alone)
    found = Boxes.find(folder, "test", part).of(3, (600, 512))
    np.testing.assert_allclose(found[0], np.array([3, 3, 13, 13]) / (600, 512, 600, 512))


def test_transparent_and_turned_pictures(tmp_path):
    """Transparency is white, and a camera's note of its side is followed."""
    clear = Image.new("RGBA", (3, 2), (255, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 255, 255))
    clear.save(tmp_path / "clear.png")
    pixels = np.asarray(read_picture(tmp_path / "clear.png"))
    assert pixels[0].tolist() == [[0, 0, 255], [255, 255, 255], [255, 255, 255]]
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (20, 40)


def test_what_does_not_fit_is_said_before_anything_is_scored(
    family_of_photographs, tmp_path, monkeypatch, capfd
):
    folder, pictures = family_of_photographs
    run, page = tmp_path / "run", tmp_path / "page.png"
    assert main(["train", "--data", str(folder), *TINY, "--out", str(run)]) == 0
    monkeypatch.setattr("sede_kernels.training.scoring.compare_part", None)

    def said(*words: object) -> str:
        return refused(capfd, "eval", run, *words)

    shown = ["--visualize", page, "--images", pictures]
    assert "--images is for the page of --visualize" in said("--images", pictures)
    assert "name the folder of the pictures with --images" in said("--visualize", page)
    where = ["--visualize", page, "--images"]
    assert "--images takes the folder of the pictures" in said(*where, tmp_path / "nowhere")

    boxes = np.load(folder / "test_boxes.npy")
    for wrong, words in (
        (boxes[:, :3], "must hold (6 images, 4 regions, 4), got (6, 3, 4)"),
        (boxes[:, :, [2, 1, 0, 3]], "right and bottom not below left and top"),
        (boxes * np.nan, "it has other numbers"),
        (boxes * 2, "has boxes up to 1024 x 1000 for a picture of"),
        (boxes.astype("U9"), "must hold numbers"),
    ):
        np.save(folder / "test_boxes.npy", wrong)
        assert words in said(*shown)
    np.save(folder / "test_boxes.npy", boxes / 600)

    (pictures / "again_1002.png").write_bytes(b"")
    assert "ends with the id 1002" in said(*shown)
    (pictures / "again_1002.png").unlink()
    (pictures / "COCO_val2014_000000001004.jpg").write_bytes(b"no picture")
    assert "001004.jpg cannot be read as a picture" in said(*shown)
    (pictures / "COCO_val2014_000000001004.jpg").unlink()
    assert "ends with the id 1004 of" in said(*shown)
    (folder / "id_mapping.json").write_text("[1]")
    assert "must hold a file name for each id" in said(*shown)
    (folder / "id_mapping.json").write_text('{"1000": "a.jpg"}')
    assert "has no file for the id 1001" in said(*shown)
    (folder / "test_files.txt").write_text("a.jpg\n" * 5)
    assert "test_files.txt has 5 lines for 6 rows" in said(*shown)
    (folder / "test_files.txt").write_text("a.jpg\n" * 6)
    assert "a.jpg is missing" in said(*shown)
    for name in ("test_files.txt", "id_mapping.json", "test_ids.txt"):
        (folder / name).unlink()
    assert "does not say which picture is which" in said(*shown)


def test_shares_and_pixels_are_the_same_boxes(family_of_photographs):
    folder, _ = family_of_photographs
    part = load_part(folder, "test")
    pixels = Boxes.find(folder, "test", part).of(0, (512, 600))
    np.save(folder / "test_boxes.npy", np.load(folder / "test_boxes.npy") / (512, 600, 512, 600))
    shares = Boxes.find(folder, "test", part).of(0, (1024, 77))
    np.testing.assert_allclose(pixels, shares, rtol=1e-6)
