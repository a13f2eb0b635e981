"""One forward pass of a training step: encode, compare with the batch and with the banks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sede_kernels.distributed import Batches as RowsOfRanks
from sede_kernels.momentum import MomentumEncoder
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.data.batches import Batch
from sede_kernels.training.directions import Objective, Pair
from sede_kernels.training.models import Encoded, RetrievalModel
from sede_kernels.training.ranks import Ranks


class Step(nn.Module):
    """The loss of a batch, and its keys, as one module: what DDP wraps and compile compiles.

    Args:
        model: the only sub-module here, so that DDP leaves banks and momentum encoders alone.
        objective: the loss and the banks.
        momentum: encoders of the keys, or none.
        config: settings.
        bf16_keys: whether momentum encoders multiply in bf16 where the model does not.
    """

    def __init__(
        self,
        model: RetrievalModel,
        objective: Objective,
        momentum: Sequence[MomentumEncoder],
        config: TrainConfig,
        bf16_keys: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self._beside = objective, tuple(momentum)
        self._bf16 = config.precision == "bf16"
        self._bf16_keys = self._bf16 or bf16_keys

    def forward(
        self, batch: Batch, rows: RowsOfRanks, keys: RowsOfRanks | None, warm: bool
    ) -> tuple[Tensor, Pair | None]:
        """Loss, and the keys to store.

        Args:
            batch: of this rank; one row where it has none, which then does not count.
            rows: how the batch lies over the ranks.
            keys: how the rows with keys do, the first ones of each rank; None for no keys.
            warm: whether the loss sees the banks.

        Returns:
            The mean loss of all ranks' rows, as this rank's share times the number of ranks: the
            mean over the ranks is the loss, and the mean of the gradients its gradient.
        """
        regions, *text, ids = batch
        with torch.autocast(regions.device.type, torch.bfloat16, self._bf16):
            images = self.model.image_encoder(regions)
            texts = self.model.text_encoder(*text)
        if self._bf16:
            images, texts = _float(images), _float(texts)
        own = rows.sizes[rows.rank]
        images, texts, ids = images.first(own), texts.first(own), ids[:own]
        found: Pair | None = None
        if keys is not None:
            count = keys.sizes[keys.rank]
            found = images.first(count).detach(), texts.first(count).detach()
            if self._beside[1]:
                found = self._momentum_keys(regions, text, count)
        return self._loss(images, texts, ids, rows, keys if warm else None, found), found

    @torch.no_grad()
    def _momentum_keys(self, regions: Tensor, text: list[Tensor | None], count: int) -> Pair:
        some = max(count, 1)  # encoders need a row
        image, caption = self._beside[1]
        with torch.autocast(regions.device.type, torch.bfloat16, self._bf16_keys):
            images = image(regions[:some])
            texts = caption(*(None if part is None else part[:some] for part in text))
        return _float(images).first(count), _float(texts).first(count)

    def _loss(
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        rows: RowsOfRanks,
        key_rows: RowsOfRanks | None,
        keys: Pair | None,
    ) -> Tensor:
        objective = self._beside[0]
        loss: Tensor = objective(images, captions, ids, rows=rows)
        if key_rows is not None:
            count = key_rows.sizes[key_rows.rank]
            some = images.first(count), captions.first(count), ids[:count]
            weight = self.config.bank_weight
            loss = loss + weight * objective(*some, keys, rows=key_rows)
        erasing = self.model.erasing
        if erasing is not None and erasing.how == "second":
            erased = self.model.erased(images)
            second = objective(erased, captions, ids, erased=True, rows=rows)
            loss = loss + self.config.erase_weight * second
        return loss


def build(step: Step, ranks: Ranks) -> nn.Module:
    """The step as it is called: compiled where the settings say so, under DDP on several ranks."""
    called: nn.Module = step
    if ranks.world > 1:
        called = DistributedDataParallel(step)  # the banks are no part of it
    if step.config.compile == "on":
        called = torch.compile(called)  # type: ignore[assignment]
    return called


def _float(side: Encoded) -> Encoded:
    vector = None if side.vector is None else side.vector.float()
    return side._replace(fragments=side.fragments.float(), vector=vector)
