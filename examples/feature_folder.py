"""A feature folder as people have it: region features, their boxes, and the pictures as files.

python examples/feature_folder.py PREPARED FOLDER PICTURES

PREPARED is a folder of `sede prepare`. Its 6 x 6 grid of features becomes 17 overlapping regions
of each picture, the whole and all blocks of 3 x 3 cells, as a detector's boxes overlap; a region
has the mean of its cells. FOLDER then trains by `sede train --data FOLDER`, and `sede eval RUN
--visualize page.png --images PICTURES` shows which regions a word attends to.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from sede_kernels.training.gallery import Drawings

GRID, BLOCK, SIDE = 6, 3, 192  # cells each way, cells of a region, pixels of a picture
CELLS = [(0, 0, GRID, GRID)] + [
    (x, y, x + BLOCK, y + BLOCK) for y in range(GRID - BLOCK + 1) for x in range(GRID - BLOCK + 1)
]


def main(prepared: Path, folder: Path, pictures: Path) -> None:
    """Write both folders."""
    folder.mkdir(parents=True)
    pictures.mkdir(parents=True)
    shutil.copy(prepared / "vocab.json", folder)
    boxes = np.array(CELLS, np.float32) * (SIDE / GRID)
    for part in ("train", "dev", "test"):
        grid = np.load(prepared / f"{part}_ims.npy").astype(np.float32)
        grid = grid.reshape(len(grid), GRID, GRID, -1)
        regions = [
            grid[:, top:bottom, left:right].mean((1, 2)) for left, top, right, bottom in CELLS
        ]
        np.save(folder / f"{part}_ims.npy", np.stack(regions, 1))
        np.save(folder / f"{part}_boxes.npy", np.tile(boxes, (len(grid), 1, 1)))
        for name in (f"{part}_caps.txt", f"{part}_index.txt", f"{part}_ids.txt"):
            shutil.copy(prepared / name, folder)
        drawings = Drawings(prepared, part)
        numbers = (prepared / f"{part}_ids.txt").read_text().split()
        for row, number in enumerate(numbers):
            drawings.picture(row, SIDE).save(pictures / f"{number}.png")
    print(json.dumps({"regions": len(CELLS), "folder": str(folder), "pictures": str(pictures)}))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
