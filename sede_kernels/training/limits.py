"""What this machine can do: memory for a run, its device, and the backend of the environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sede_kernels.backends import registry
from sede_kernels.training.config import TrainConfig
from sede_kernels.training.files import UserError
from sede_kernels.training.models import MODELS, RetrievalModel, Sizes

_GIB = 1 << 30


def make_model(config: TrainConfig, features: int, words: int, sentence: int = 0) -> RetrievalModel:
    """The model of the settings on the default device."""
    kind = MODELS[config.model]
    sizes = Sizes(features, words, sentence, config.dim, config.word_dim, config.dropout)
    options = {name: getattr(config, name) for name in kind.options}
    return kind(sizes, config.erasing, **options)


def check_memory(
    config: TrainConfig,
    *,
    features: int,
    words: int,
    sentence: int,
    regions: int,
    longest: int,
    ranks: int = 1,
) -> None:
    """Refuse settings whose weights and banks alone are more than the memory.

    Args:
        config: settings.
        features: width of the region features.
        words: size of the vocabulary.
        sentence: width of sentence embeddings, 0 for none.
        regions: regions per image.
        longest: words of the longest caption.
        ranks: processes that share the banks.

    Raises:
        UserError: names the settings, what they need and what there is.
    """
    try:
        with torch.device("meta"):  # shapes only
            model = make_model(config, features, words, sentence)
        # Weights, gradients, the two moments of AdamW, and the momentum encoders.
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
    except RuntimeError:  # the number of bytes does not fit 64 bits
        weights = 1 << 63
    need = 4 * weights
    if config.bank and config.bank_keys == "momentum":
        need += weights
    if config.bank:
        sets = regions + longest if MODELS[config.model].compares_fragments else 0
        need += 4 * -(-config.bank // ranks) * config.dim * (sets + 2)
    have = _memory(config.device)
    if have and need > have:
        raise UserError(
            f"dim {config.dim}, word_dim {config.word_dim}, bank {config.bank} and relations "
            f"{config.relations} need {need / _GIB:,.0f} GiB for weights and banks, "
            f"{config.device!r} has {have / _GIB:,.0f} GiB: lower them."
        )


def _memory(device: str) -> int:
    """Bytes of memory of a device; 0 where that is not known."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on every system
        return 0


@contextmanager
def enough_memory() -> Iterator[None]:
    """Turn the errors of a full memory into one sentence."""
    try:
        yield
    except MemoryError as error:
        raise UserError(_FULL) from error
    except RuntimeError as error:
        full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not full:
            raise
        raise UserError(_FULL) from error


_FULL = "the memory is full: lower --batch-size, --dim or --bank, or end other programs."


def device_problem(name: str) -> str | None:
    """Why a device cannot be used: it is not there, or it computes nothing; else None."""
    try:
        device = torch.device(name)
    except (RuntimeError, UnicodeError):  # torch's own words are a list of all that it knows
        return f"device {name!r} cannot be used here (it is no name of a device)"
    try:
        float(torch.ones(1, device=device).sum())
    except Exception as error:  # of any kind: each device has its own way to be missing
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0]
        return f"device {name!r} cannot be used here ({reason.rstrip('.')[:160]})"
    return None


def choose_device(name: str) -> None:
    """Refuse a device that this machine does not have, or that computes nothing.

    Raises:
        UserError: with torch's reason.
    """
    problem = device_problem(name)
    if problem is not None:
        usable = "cpu or cuda" if torch.cuda.is_available() else "cpu"
        raise UserError(f"{problem}: choose {usable}.")


def check_backend() -> None:
    """Refuse a ``SEDE_BACKEND`` or ``SEDE_CPU_ISA`` that is none, or that this machine cannot run.

    Raises:
        UserError: what it may be, or why it cannot run.
    """
    try:
        name = registry.requested("auto")
        registry.unavailable_reason("cpu")  # reads the instruction set
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}: choose one of them, or unset it.") from error
    reason = None if name == "auto" else registry.unavailable_reason(name)
    if reason is not None:
        raise UserError(
            f"SEDE_BACKEND={name} cannot be used here ({reason}): choose another, or unset it."
        )
