"""open_clip: its CLIP loss with memory banks, hardness weights and ids."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels.backends import registry
from sede_kernels.bank import MemoryBank
from sede_kernels.checks import check_count
from sede_kernels.distributed import Batches, batches, gather_keys
from sede_kernels.functional import symmetric_info_nce
from sede_kernels.integrations._banked import make_bank, training_call
from sede_kernels.integrations._checks import (
    Ids,
    check_bank_settings,
    check_features,
    check_real,
    check_stored,
    check_switch,
    check_temperature,
    described,
    ids_tensor,
)
from sede_kernels.warmup import WarmUp

#: Most rows whose plain loss shares one matrix of logits between both directions (fp32: 64 MB).
DENSE_ROWS = 4096
#: What of ``symmetric_info_nce`` the trainer's arguments do not decide.
LOSS_OPTIONS = (
    "normalize_weights",
    "detach_weights",
    "positive_focus",
    "tau_plus",
    "false_negatives",
    "margin",
    "unit_length",
    "backend",
)


def _check_options(options: dict[str, Any]) -> None:
    """The loss's own sentence for keywords that it cannot take."""
    unknown = sorted(set(options) - set(LOSS_OPTIONS))
    if unknown:
        raise TypeError(
            f"ClipLoss: unknown keyword {unknown[0]}; those of the loss are "
            f"{', '.join(LOSS_OPTIONS)}."
        )
    for key in ("normalize_weights", "detach_weights", "unit_length"):
        check_switch("ClipLoss", key, options.get(key, False))
    for key in ("positive_focus", "tau_plus"):
        check_real("ClipLoss", key, options.get(key, 0.0), least=0.0)
    if options.get("margin") is not None:
        check_real("ClipLoss", "margin", options["margin"])
    registry.requested(options.get("backend", "auto"))
    with torch.device("cpu"):
        none, ids = torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64)
        settings = {**options, "backend": "torch", "ids": ids, "in_batch_negatives": True}
        symmetric_info_nce(none, none, none, none, None, None, **settings)


class ClipLoss(WarmUp):
    """Twin of open_clip's ``ClipLoss``: same arguments, same sum, plus banks, weights and ids.

    Without bank, hardness and ids value and gradients are the host's; beyond ``DENSE_ROWS`` rows no
    B x B matrix of logits is kept. In training each call stores its features after the loss.

    Args:
        local_loss: only False; the fused loss needs no local split to save memory.
        gather_with_grad: as the host, with world_size > 1.
        cache_labels: kept as in the host; there are no labels to cache.
        rank: of this process.
        world_size: number of processes; all ranks hold the same banks.
        use_horovod: only False.
        bank_size: features kept a modality; 0 for no bank.
        dim: D, width of the features; needed with a bank.
        bank_dtype: see ``MemoryBank``.
        hardness: beta >= 0 in cosine units.
        start_step: enqueues before the banks take part.
        accum_freq: the trainer's; it calls the loss so often a step with the same features, which
            are stored once, by the last call.
        sharded: all ranks hold the banks together, see ``ShardedMemoryBank``; needs a bank. The
            loss is over the rows of all ranks on each of them, so each asks with all of them: W
            times the exchange that its own rows would take.
        loss_options: further keywords of ``symmetric_info_nce``: ``margin``, ``tau_plus``, ...

    Source:
        Radford et al. 2021 (CLIP); Ilharco et al. 2021 (open_clip).

    Example:
        >>> criterion = ClipLoss(bank_size=8, dim=4)
        >>> image = torch.eye(4).requires_grad_()
        >>> list(criterion(image, torch.eye(4), torch.tensor(10.0), output_dict=True))
        ['contrastive_loss']
        >>> len(criterion.text_bank)
        4
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
        *,
        bank_size: int = 0,
        dim: int | None = None,
        bank_dtype: torch.dtype = torch.float32,
        hardness: float = 0.0,
        start_step: int = 0,
        accum_freq: int = 1,
        sharded: bool = False,
        **loss_options: Any,
    ) -> None:
        super().__init__(start_step)
        world_size = check_count("ClipLoss", "world_size", world_size, least=1)
        if local_loss and world_size > 1:
            raise ValueError(
                "ClipLoss: local_loss=True is not supported; leave --local-loss out, the fused "
                "loss keeps no matrix of logits."
            )
        if use_horovod:
            raise ValueError("ClipLoss: use_horovod=True is not supported; use torch.distributed.")
        self.local_loss = check_switch("ClipLoss", "local_loss", local_loss)
        self.cache_labels = check_switch("ClipLoss", "cache_labels", cache_labels)
        self.gather_with_grad = check_switch("ClipLoss", "gather_with_grad", gather_with_grad)
        self.rank = check_count("ClipLoss", "rank", rank)
        self.world_size = world_size
        self.hardness = check_real("ClipLoss", "hardness", hardness, least=0.0)
        self.accum_freq = check_count("ClipLoss", "accum_freq", accum_freq, least=1)
        self.options = loss_options
        _check_options(loss_options)
        size, width = check_bank_settings("ClipLoss", bank_size, dim, bank_dtype)
        self.image_bank: MemoryBank | None = None
        self.text_bank: MemoryBank | None = None
        self._calls = 0
        self.sharded = check_switch("ClipLoss", "sharded", sharded)
        if sharded and not size:
            raise ValueError("ClipLoss: sharded=True needs a bank; pass bank_size and dim.")
        if size:
            self.image_bank = make_bank(size, width, bank_dtype, self.sharded)
            self.text_bank = make_bank(size, width, bank_dtype, self.sharded)

    def _ranks(self, features: Tensor, ids: Tensor | None) -> Batches | None:
        """The batches of all ranks; None alone."""
        if self.world_size == 1:
            return None
        found = batches(features, ids, name="ClipLoss")
        if len(found.sizes) != self.world_size:
            raise ValueError(
                f"ClipLoss: world_size={self.world_size} but torch.distributed runs "
                f"{len(found.sizes)} process(es); start it first, or pass its world size."
            )
        return found

    def _gather(self, features: Tensor, ranks: Batches | None) -> Tensor:
        """Features of all ranks; without ``gather_with_grad`` only the own ones have a gradient."""
        if ranks is None:
            return features
        if self.gather_with_grad:
            return ranks.gather(features)
        every, start = ranks.gather(features.detach()), ranks.offset
        return torch.cat([every[:start], features, every[start + features.shape[0] :]])

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
        *,
        ids: Ids | None = None,
        keys: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The mean of both directions.

        Args:
            image_features: (B, D) unit rows, as the model returns them.
            text_features: (B, D).
            logit_scale: inverse temperature, one element, as the model returns it.
            logit_bias: a constant cancels in the softmax; accepted as in the host.
            output_dict: return ``{"contrastive_loss": loss}``.
            ids: (B,) what each pair is of; pairs of one id are no negatives.
            keys: a momentum encoder's (image, text) features to store instead.

        Returns:
            Scalar, or the dictionary that the trainer sums.
        """
        check_features("ClipLoss", "image_features", image_features, (None, None))
        check_features("ClipLoss", "text_features", text_features, tuple(image_features.shape))
        check_temperature("ClipLoss", "logit_scale", logit_scale, image_features.device)
        known = ids_tensor("ClipLoss", ids, image_features.shape[0], image_features.device)
        stored = self._keys((image_features, text_features) if keys is None else keys, known)
        training = training_call(self, image_features, text_features)
        ranks = self._ranks(image_features, known)
        image, text = self._gather(image_features, ranks), self._gather(text_features, ranks)
        every = known if known is None or ranks is None else ranks.gather(known)
        warm = self.warm
        texts = None if self.text_bank is None else self.text_bank.where(warm)
        images = None if self.image_bank is None else self.image_bank.where(warm)
        plain = texts is None and every is None and not self.hardness and not self.options
        if plain and len(image) <= DENSE_ROWS:
            logits = logit_scale * image @ text.t()
            target = torch.arange(len(image), device=image.device)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
        else:
            loss = symmetric_info_nce(
                image,
                text,
                image,
                text,
                images,
                texts,
                temperature=1.0 / logit_scale,
                hardness=self.hardness,
                ids=every,
                in_batch_negatives=True,
                **self.options,
            )
        if training:
            self._calls = (self._calls + 1) % self.accum_freq
            if self._calls == 0 and keys is None and not self.sharded:
                self._store(image, text, every)
            elif self._calls == 0:
                self.enqueue(*stored, known)
        return {"contrastive_loss": loss} if output_dict else loss

    def _keys(self, keys: tuple[Tensor, Tensor], ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is to be stored, checked before anything is."""
        if not isinstance(keys, tuple | list) or len(keys) != 2:
            raise TypeError(
                f"ClipLoss: keys must be (image, text), two tensors, got {described(keys)}."
            )
        image, text = keys
        banks = ("image features", image, self.image_bank), ("text features", text, self.text_bank)
        check_stored("ClipLoss", banks, ids)
        return image, text

    @torch.no_grad()
    def enqueue(self, image: Tensor, text: Tensor, ids: Tensor | None = None) -> None:
        """Store features of all ranks, of this one where sharded; the loss does so in training."""
        if self.image_bank is None:
            return
        image, text = self._keys((image, text), ids)
        if self.world_size > 1 and not self.sharded:
            image, every = gather_keys(image, ids)
            text, ids = gather_keys(text)[0], every
        self._store(image, text, ids)

    @torch.no_grad()
    def _store(self, image: Tensor, text: Tensor, ids: Tensor | None) -> None:
        if self.image_bank is None or self.text_bank is None:
            return
        self.image_bank.enqueue(image, ids)
        self.text_bank.enqueue(text, ids)
        self.advance()


class TrainerArguments(Protocol):
    """What of open_clip's parsed arguments is read here; 4.x has no ``horovod`` any more."""

    model: str
    distill: bool
    siglip: bool
    local_loss: bool
    gather_with_grad: bool
    rank: int
    world_size: int
    accum_freq: int


def create_loss(args: TrainerArguments, **settings: Any) -> ClipLoss:
    """Twin of ``open_clip.create_loss(args)`` of 3.3 and 4.x.

    Args:
        args: the host's parsed arguments.
        settings: those of ``ClipLoss``; with ``bank_size`` and without ``dim`` the width is the
            ``embed_dim`` of the host's configuration of ``args.model``.

    Raises:
        ValueError: the arguments ask for a loss other than the CLIP loss, or the host has no
            configuration of the model and ``dim`` is missing.
    """
    model = args.model.lower()
    kinds = {
        "distillation": args.distill,
        "CoCa": "coca" in model,
        "GenLIP": "genlip" in model or "genlap" in model,
        "SigLIP": args.siglip,
    }
    asked = [kind for kind, wanted in kinds.items() if wanted]
    if asked:
        raise ValueError(
            f"create_loss: only the CLIP loss has a twin, the arguments ask for {asked[0]}; use "
            "open_clip.create_loss."
        )
    settings.setdefault("accum_freq", args.accum_freq)
    # 4.x: labels are cached unless the task or the step is compiled.
    strategy = getattr(args, "torchcompile_strategy", "task")
    compiled = getattr(args, "torchcompile", False) and strategy in ("task", "step")
    if settings.get("bank_size") and settings.get("dim") is None:
        settings["dim"] = _width(args.model)
    return ClipLoss(
        local_loss=args.local_loss,
        gather_with_grad=args.gather_with_grad,
        cache_labels=not compiled,
        rank=args.rank,
        world_size=args.world_size,
        use_horovod=getattr(args, "horovod", False),
        **settings,
    )


def _width(model: str) -> int:
    """The width of the host's model of this name."""
    config = importlib.import_module("open_clip").get_model_config(model)
    if not isinstance(config, Mapping) or "embed_dim" not in config:
        raise ValueError(
            f"create_loss: open_clip has no configuration of {model!r} that says its width; "
            "pass dim."
        )
    return int(config["embed_dim"])


def load_loss(loss: ClipLoss, checkpoint: str | Path) -> None:
    """Restore the banks from the ``loss`` entry of one of the trainer's checkpoint files.

    Args:
        loss: built with the same ``bank_size``.
        checkpoint: ``args.resume``.

    Raises:
        ValueError: the checkpoint holds no ``loss``; it was written without the recipe's line.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = saved.get("loss") if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(
            f"load_loss: {checkpoint} has no entry 'loss'; leave the call out to start with an "
            "empty bank."
        )
    loss.load_state_dict(state)
