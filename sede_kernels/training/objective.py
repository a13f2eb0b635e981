"""The loss of a batch against the batch and two banks, for vectors and for fragments."""

from typing import Any

import torch
from torch import Tensor, nn

from sede_kernels.bank import BankView, FragmentBank, MemoryBank
from sede_kernels.distributed import Batches as RowsOfRanks
from sede_kernels.functional import hardest_negatives, symmetric_info_nce, weighted_info_nce
from sede_kernels.sharded_bank import ShardedMemoryBank
from sede_kernels.sharded_fragment_bank import ShardedFragmentBank
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.directions import Objective, Pair, Way
from sede_kernels.training.files import UserError
from sede_kernels.training.losses import hardest_hinge
from sede_kernels.training.models import Encoded, FragmentModel
from sede_kernels.training.ranks import Ranks, own_first
from sede_kernels.types import ANONYMOUS, EMPTY


class VectorObjective(Objective):
    """For models with one vector a side: the fused kernels of this library.

    Args:
        config: settings.
        dim: width of the vectors.
        ranks: of the run.
    """

    def __init__(self, config: TrainConfig, dim: int, ranks: Ranks = Ranks()) -> None:  # noqa: B008
        super().__init__(config, ranks)
        if config.bank:
            self.image_bank = self._bank(dim)
            self.caption_bank = self._bank(dim)

    def forward(
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        keys: Pair | None = None,
        *,
        erased: bool = False,
        rows: RowsOfRanks | None = None,
    ) -> Tensor:
        """Mean loss of both directions."""
        image, caption = images.unit_vector(), captions.unit_vector()
        old_image, old_caption, image_bank, caption_bank = image, caption, None, None
        if keys is not None:
            old_image, old_caption = (side.unit_vector() for side in keys)
            image_bank, caption_bank = self.image_bank, self.caption_bank
        if rows is not None and len(rows.sizes) > 1:
            banks = None if keys is None else (self.image_bank, self.caption_bank)
            return self._of_ranks(image, caption, old_image, old_caption, banks, ids, rows)
        if self.config.loss == "hinge":
            first = self._hinge(image, old_caption, caption_bank, ids)
            return (first + self._hinge(caption, old_image, image_bank, ids)) / 2
        return symmetric_info_nce(
            image,
            caption,
            old_image,
            old_caption,
            image_bank,
            caption_bank,
            temperature=self.config.temperature,
            hardness=self.config.weighting,
            ids=ids,
            in_batch_negatives=True,
            unit_length=True,
        )

    def _of_ranks(
        self,
        image: Tensor,
        caption: Tensor,
        old_image: Tensor,
        old_caption: Tensor,
        banks: tuple[MemoryBank, MemoryBank] | None,
        ids: Tensor,
        rows: RowsOfRanks,
    ) -> Tensor:
        """This rank's share, see the class."""
        alone = self._alone(rows, len(ids))
        if banks is None or self.config.loss == "hinge":
            # One exchange of both sides, and one sum on the way back where they learn.
            every = own_first(alone.gather(torch.cat([old_image, old_caption], 1)), alone)
            key_ids = own_first(alone.gather(ids), alone)
            images, captions = every.chunk(2, dim=1)
            ways = (
                Way(image @ captions.t(), ids=ids, key_ids=key_ids),
                Way(caption @ images.t(), ids=ids, key_ids=key_ids),
            )
            if banks is not None:
                sides = (image, banks[1]), (caption, banks[0])
                ways = tuple(  # type: ignore[assignment]
                    self._beside_bank(way, *side) for way, side in zip(ways, sides, strict=True)
                )
            return (self._one_way(ways[0], rows) + self._one_way(ways[1], rows)) / 2
        options: dict[str, Any] = {
            "temperature": self.config.temperature,
            "hardness": self.config.weighting,
            "unit_length": True,
        }
        first: Tensor
        second: Tensor
        if alone.group is None:
            rest = old_caption, *banks
            first = symmetric_info_nce(
                image, caption, old_image, *rest, ids=ids, in_batch_negatives=True, **options
            )
            return first
        longest = max(rows.sizes)
        texts, pictures = (
            _pool(bank, key, ids, longest)
            for bank, key in ((banks[1], old_caption), (banks[0], old_image))
        )
        first = weighted_info_nce(image, old_caption, texts, query_ids=ids, **options)
        second = weighted_info_nce(caption, old_image, pictures, query_ids=ids, **options)
        return (first + second) / 2

    def _beside_bank(self, way: Way, query: Tensor, bank: MemoryBank) -> Way:
        """The same scores, and that of the hardest stored key as one more."""
        assert way.ids is not None and way.key_ids is not None
        found = self._hardest_stored(query, bank, way.ids)
        none = way.ids.new_full((1,), ANONYMOUS)
        scores = torch.cat([way.scores, found.unsqueeze(1)], 1)
        return Way(scores, ids=way.ids, key_ids=torch.cat([way.key_ids, none]))

    def _hardest_stored(self, query: Tensor, bank: MemoryBank, ids: Tensor) -> Tensor:
        """(B,) dot products with the hardest stored keys, -inf without one."""
        values, at = hardest_negatives(query.detach(), bank, 1, query_ids=ids)
        if isinstance(bank, ShardedMemoryBank):
            found = bank.fetch(bank.rows, at)[:, 0]
        else:
            found = bank.rows[at[:, 0].clamp_min(0)]
        # The dot product again, so that the query gets a gradient.
        return (query * found).sum(1).masked_fill(values[:, 0].isinf(), -torch.inf)

    def _hinge(self, query: Tensor, key: Tensor, bank: MemoryBank | None, ids: Tensor) -> Tensor:
        scores = query @ key.t()
        hardest = scores.masked_fill(ids[:, None] == ids, float("-inf")).max(1).values
        if bank is not None:
            hardest = torch.maximum(hardest, self._hardest_stored(query, bank, ids))
        return hardest_hinge(scores.diagonal(), hardest, self.config.margin).mean()

    @torch.no_grad()
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store one vector an image and a caption."""
        self.image_bank.enqueue(keys[0].unit_vector(), ids)
        self.caption_bank.enqueue(keys[1].unit_vector(), ids)


def _pool(bank: MemoryBank, keys: Tensor, ids: Tensor, longest: int) -> BankView:
    """The bank's rows here and those of the batch, as one bank of all ranks.

    Every rank adds ``longest`` rows, empty ones where it has fewer keys. Costs a copy of the rows.
    """
    view = bank.view()
    assert view.shard is not None
    more = longest - len(ids)
    shard = view.shard._replace(
        offset=view.shard.offset + view.shard.rank * longest,
        size=view.shard.size + view.shard.world * longest,
    )
    keys = nn.functional.pad(keys.detach().to(view.rows.dtype), (0, 0, 0, more))
    ids = nn.functional.pad(ids, (0, more), value=EMPTY)
    return BankView(torch.cat([view.rows, keys]), None, torch.cat([view.ids, ids]), shard)


class FragmentObjective(Objective):
    """For models that compare fragments: banks of region and word sets, scored by the model.

    With ``bank_hardest`` = k, each query first finds its k hardest sets by the cosine of mean
    fragments, with the fused kernels, and the model scores it with its own key and those k sets.
    With 0 it scores every query with the keys of the batch and the whole bank, B times K pairs.

    Args:
        config: settings.
        model: its ``score`` compares queries with banks; it is not a sub-module here.
        regions: fragments an image.
        longest: words of the longest caption.
        ranks: of the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: FragmentModel,
        regions: int,
        longest: int,
        ranks: Ranks = Ranks(),  # noqa: B008
    ) -> None:
        super().__init__(config, ranks)
        if config.bank and not config.bank_hardest and ranks.world > 1:
            raise UserError(
                "bank_hardest 0 compares with every stored set, and each process holds some of "
                "them only: give --bank-hardest 1 or more, or train with one process."
            )
        self._score = model.score
        self._score_pairs = model.score_pairs
        if config.bank:
            self.image_bank = self._sets(regions)
            self.caption_bank = self._sets(longest)
            self.image_means = self._bank(config.dim)
            self.caption_means = self._bank(config.dim)

    def _sets(self, longest: int) -> FragmentBank:
        """A bank of fragment sets, this rank's part of it."""
        kind = FragmentBank if self.ranks.world == 1 else ShardedFragmentBank
        return kind(self.config.bank, longest, self.config.dim)

    def forward(
        self,
        images: Encoded,
        captions: Encoded,
        ids: Tensor,
        keys: Pair | None = None,
        *,
        erased: bool = False,
        rows: RowsOfRanks | None = None,
    ) -> Tensor:
        """Mean loss of both directions."""
        if keys is None:
            ways = self._of_batch(images, captions, ids, self._alone(rows, len(ids)), erased)
        else:
            against = self._of_hardest if self.config.bank_hardest else self._of_bank
            ways = against(images, captions, ids, keys)
        first, second = (self._one_way(way, rows) for way in ways)
        return (first + second) / 2

    def _of_batch(
        self, images: Encoded, captions: Encoded, ids: Tensor, rows: RowsOfRanks, erased: bool
    ) -> tuple[Way, Way]:
        """Against each other; of several ranks captions and scores are gathered, not images."""
        if rows.group is not None:
            lengths = captions.lengths
            captions = Encoded(
                rows.gather(captions.fragments), None if lengths is None else rows.gather(lengths)
            )
        scores = self._score(images, captions, erased=erased)  # (B, all)
        key_ids = own_first(rows.gather(ids), rows)
        mine = slice(rows.offset, rows.offset + len(ids))
        columns = rows.gather(scores)[:, mine].t()
        return (
            Way(own_first(scores, rows, 1), ids=ids, key_ids=key_ids),
            Way(own_first(columns, rows, 1), ids=ids, key_ids=key_ids),
        )

    def _of_bank(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair
    ) -> tuple[Way, Way]:
        """Against the keys of the batch and all that is stored."""
        stored = (Encoded(bank.rows, bank.lengths) for bank in (self.image_bank, self.caption_bank))
        others, texts = (_joined(key, sets) for key, sets in zip(keys, stored, strict=True))
        return (
            Way(
                self._score(images, texts),
                ids=ids,
                key_ids=torch.cat([ids, self.caption_bank.ids]),
            ),
            Way(
                self._score(others, captions).t(),
                ids=ids,
                key_ids=torch.cat([ids, self.image_bank.ids]),
            ),
        )

    def _of_hardest(
        self, images: Encoded, captions: Encoded, ids: Tensor, keys: Pair
    ) -> tuple[Way, Way]:
        """Each query against its own key and the hardest sets that it finds in the bank."""
        image_keys, caption_keys = keys
        texts, some_texts = self._candidates(
            images, caption_keys, self.caption_bank, self.caption_means, ids
        )
        others, some_others = self._candidates(
            captions, image_keys, self.image_bank, self.image_means, ids
        )
        to_text = self._score_pairs(_each(images), texts)
        to_image = self._score_pairs(others, _each(captions))
        return (
            Way(to_text[:, 1:], to_text[:, 0], some_texts),
            Way(to_image[:, 1:], to_image[:, 0], some_others),
        )

    def _candidates(
        self, query: Encoded, key: Encoded, bank: FragmentBank, means: MemoryBank, ids: Tensor
    ) -> tuple[Encoded, Tensor]:
        """Of each query its key, then its hardest sets (B, 1 + k, L, D); which exist (B, k)."""
        wanted = self.config.bank_hardest
        near = hardest_negatives(mean_fragment(query), means, wanted, query_ids=ids)[1]
        if isinstance(bank, ShardedFragmentBank):
            found, counts = bank.fetch(near)
            lengths = nn.functional.pad(counts, (1, 0))  # the first place is for the key
            sets = nn.functional.pad(found, (0, 0, 0, 0, 1, 0))
            return _with_key(sets, lengths, key, query.fragments.dtype), near >= 0
        rows = nn.functional.pad(near.clamp_min(0), (1, 0))
        sets = bank.rows.index_select(0, rows.flatten()).view(*rows.shape, *bank.rows.shape[1:])
        return _with_key(sets, bank.lengths[rows], key, query.fragments.dtype), near >= 0

    @torch.no_grad()
    def enqueue(self, keys: Pair, ids: Tensor) -> None:
        """Store the region set of each image and the word set of each caption."""
        images, captions = keys
        self.image_bank.enqueue(images.fragments, images.lengths, ids)
        self.caption_bank.enqueue(captions.fragments, captions.lengths, ids)
        self.image_means.enqueue(mean_fragment(images), ids)
        self.caption_means.enqueue(mean_fragment(captions), ids)


def _with_key(sets: Tensor, lengths: Tensor, key: Encoded, dtype: torch.dtype) -> Encoded:
    """Sets (B, 1 + k, L, D) whose first ones become the keys."""
    width = key.fragments.shape[1]
    sets[:, 0, :width] = key.fragments
    lengths[:, 0] = width if key.lengths is None else key.lengths
    return Encoded(sets.to(dtype), lengths)


def _each(side: Encoded) -> Encoded:
    """(B, L, D) fragments as (B, 1, L, D), for the scores of chosen pairs."""
    lengths = side.lengths
    return Encoded(side.fragments.unsqueeze(1), None if lengths is None else lengths.unsqueeze(1))


def _joined(first: Encoded, second: Encoded) -> Encoded:
    """Two batches of sets as one."""
    longest = max(first.fragments.shape[1], second.fragments.shape[1])
    sides = [
        nn.functional.pad(s.fragments, (0, 0, 0, longest - s.fragments.shape[1]))
        for s in (first, second)
    ]
    lengths = [
        s.lengths
        if s.lengths is not None
        else torch.full((len(s.fragments),), s.fragments.shape[1], device=s.fragments.device)
        for s in (first, second)
    ]
    return Encoded(torch.cat(sides), torch.cat(lengths))


@torch.no_grad()
def mean_fragment(side: Encoded) -> Tensor:
    """Unit mean of the real fragments of each set, (B, D), without a gradient."""
    fragments = side.fragments
    if side.lengths is None:
        total = fragments.sum(1)
    else:
        places = torch.arange(fragments.shape[1], device=fragments.device)
        real = (places < side.lengths.unsqueeze(1)).to(fragments.dtype)
        total = torch.bmm(real.unsqueeze(1), fragments).squeeze(1)
    return nn.functional.normalize(total, dim=1)
