"""Batches of several ranks: gathered for the banks and for the loss, ragged ones too.

Each rank holds a whole bank. With ``gather_keys`` every rank enqueues the same rows in the same
order, so the banks stay equal without a broadcast; without it each rank keeps a bank of its own
keys, which is cheaper and K / world_size as fresh. Keys carry no gradient, so DDP's averaging of
gradients is all there is: the loss of a rank is over its own queries, and its gradient scale does
not depend on the number of ranks. Where the loss itself is over the rows of all ranks,
``gather_with_grad`` brings them together and sends each gradient home.

DDP also broadcasts the buffers of rank 0 before each forward pass. Banks inside the wrapped model
would be overwritten, and a broadcast of them costs more than the step: ``keep_banks_local`` tells
DDP to leave them alone. A bank that finds itself overwritten warns once.

DDP averages the gradients of what it wraps. A criterion with parameters of its own (a learnable
temperature) belongs inside the wrapped module; outside it each rank would step on its own
gradient and the values drift apart, unless ``average_gradients`` runs before the optimiser.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sede_kernels.checks import check_ids
from sede_kernels.ring import Ring
from sede_kernels.warmup import WarmUp

_DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.bool,
)


class Batches(NamedTuple):
    """The batch sizes of all ranks, exchanged once for any number of gathers.

    Attributes:
        sizes: rows of each rank, in rank order.
        rank: of this process.
        group: name of the process group; None alone.
        checked: whether ``sizes`` were exchanged. Under ``torch.compile`` they are this rank's
            own, and every gather checks them when it runs.
    """

    sizes: list[int]
    rank: int
    group: str | None
    checked: bool

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return sum(self.sizes)

    @property
    def offset(self) -> int:
        """Rows of the ranks before this one."""
        return sum(self.sizes[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """Rows (B, ...) of every rank in rank order; a gradient is summed over the ranks' losses.

        Cost:
            One collective of the longest batch a rank, one more in the backward pass.
        """
        if self.group is None:
            return rows
        gathered: Tensor = gather_rows(rows, self.sizes, self.rank, self.group, self.checked)
        return gathered


def batches(
    rows: Tensor,
    ids: Tensor | None = None,
    group: "dist.ProcessGroup | None" = None,
    *,
    name: str = "batches",
) -> Batches:
    """Ask every rank for the size of its batch; all ranks call it alike.

    Args:
        rows: (B, ...) of this rank, B >= 0; the rest of the shape and the dtype are the same on
            every rank.
        ids: (B,) or None; given on every rank or on none.
        group: process group; None for the default one.
        name: of the caller, for the message.

    Raises:
        ValueError: the ranks do not bring the same kind of rows; raised on every rank.

    Cost:
        One collective of four integers a rank, read on the host. Under ``torch.compile`` none:
        all batches count as long as this rank's, and a gather that finds another raises.
    """
    if not isinstance(rows, Tensor) or rows.ndim < 1:
        raise TypeError(f"{name}: rows must be a tensor (B, D), got {_described(rows)}.")
    if not (dist.is_available() and dist.is_initialized()):
        return Batches([rows.shape[0]], 0, None, True)
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise ValueError(f"{name}: this process is not in the group; call it on its members only.")
    members: Any = dist.group.WORLD if group is None else group
    label: str = members.group_name
    if torch.compiler.is_compiling():
        return Batches([rows.shape[0]] * world, rank, label, False)
    return Batches(_exchange(name, rows, ids is not None, label), rank, label, True)


def gather_with_grad(rows: Tensor, group: "dist.ProcessGroup | None" = None) -> Tensor:
    """Rows of every rank in rank order, with a gradient; batches may differ in size.

    Args:
        rows: (B, D) of this rank, B >= 0, same D and dtype on every rank.
        group: process group; None for the default one.

    Returns:
        (sum B, D). Without ``torch.distributed`` initialised the rows as they are.

    Raises:
        ValueError: another D or dtype on some rank; under ``torch.compile`` also another B.

    Gradients:
        A row's is the sum over the ranks' losses; DDP's averaging divides it by their number.

    Cost:
        Two collectives, one more in the backward pass. Ragged batches are padded to the longest.

    Example:
        >>> gather_with_grad(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    return batches(rows, group=group, name="gather_with_grad").gather(rows)


@torch.no_grad()
def gather_keys(
    keys: Tensor, ids: Tensor | None = None, group: "dist.ProcessGroup | None" = None
) -> tuple[Tensor, Tensor | None]:
    """Keys and ids of every rank, in rank order; batches may differ in size.

    Args:
        keys: (N, D) keys of this rank, N >= 0, same D and dtype on every rank.
        ids: (N,) integers, or None on every rank.
        group: process group; None for the default one. Without ``torch.distributed`` initialised
            the arguments come back as they are.

    Returns:
        (sum N, D) keys and (sum N,) ids or None, equal on every rank.

    Raises:
        TypeError: keys or ids are no tensors.
        ValueError: ids do not match the keys; the ranks bring different kinds of keys, or ids on
            some only; under ``torch.compile`` also another N on some rank.

    Cost:
        Two collectives (three with ids); the sizes are read on the host.

    Example:
        >>> gather_keys(torch.ones(2, 3))[0].shape
        torch.Size([2, 3])
    """
    if not isinstance(keys, Tensor) or keys.ndim < 1:
        raise TypeError(f"gather_keys: keys must be a tensor (N, D), got {_described(keys)}.")
    if ids is not None:
        ids = check_ids("gather_keys", "ids", ids, keys.shape[0])
    found = batches(keys, ids, group, name="gather_keys")
    return found.gather(keys), None if ids is None else found.gather(ids)


@torch.no_grad()
def average_gradients(
    parameters: nn.Module | Iterable[Tensor], group: "dist.ProcessGroup | None" = None
) -> None:
    """Average the gradients of parameters outside DDP, as DDP does for those inside.

    For a learnable temperature whose criterion is not part of the wrapped model: call it on every
    rank after the backward pass and before the optimiser's step, with equal values at the start.

    Args:
        parameters: a module, or its parameters in the same order on every rank.
        group: process group; None for the default one. Alone nothing happens.

    Cost:
        One collective a dtype and device. A gradient that is None counts as zero.

    Example:
        >>> average_gradients(nn.Linear(2, 2))
    """
    if isinstance(parameters, Tensor):
        raise TypeError("average_gradients: pass a module or a list of parameters, got a tensor.")
    every = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
    for parameter in every:
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"average_gradients: parameters must be tensors, got {type(parameter).__name__}."
            )
    if not (dist.is_available() and dist.is_initialized()):
        return
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for parameter in every:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter.grad)
    for gradients in kinds.values():
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


Model = TypeVar("Model", bound=nn.Module)


def keep_banks_local(model: Model) -> Model:
    """Tell DDP to leave every bank in ``model`` as it is; call it before wrapping the model.

    DDP broadcasts the buffers of rank 0, unless the wrapped module itself names those to ignore.
    This names the banks and the step counters of losses with a warm-up, beside any names that are
    there already. Everything else about them stays: they are buffers, saved and moved as before.
    Each rank then saves its own banks; a checkpoint of rank 0 holds those of rank 0, and
    ``torch.distributed.checkpoint``, which takes plain tensors to be equal on all ranks, a mixture.
    Give it each rank's banks under a key of that rank, or keep them equal with ``gather_keys``.

    Args:
        model: what ``DistributedDataParallel`` will get, at whatever depth its banks are.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: the model is no module.
        ValueError: it is wrapped already.

    Example:
        >>> from sede_kernels import SEDELoss
        >>> criterion = keep_banks_local(SEDELoss(16, 8))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"keep_banks_local: model must be a module, got {type(model).__name__}.")
    parallel = nn.parallel.DistributedDataParallel
    if isinstance(model, parallel):
        raise ValueError(
            "keep_banks_local: the model is wrapped already; pass it before "
            "DistributedDataParallel gets it."
        )
    names = list(getattr(model, "_ddp_params_and_buffers_to_ignore", ()))
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Ring | WarmUp) or getattr(module, "keeps_buffers_local", False):
            own = (name for name, _ in module.named_buffers(recurse=False))
            names += [f"{prefix}.{name}" if prefix else name for name in own]
    ignore: Any = parallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, list(dict.fromkeys(names)))
    return model


def _described(value: object) -> str:
    """``float32 (4, 8)`` of a tensor, the type of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _group(label: str) -> "dist.ProcessGroup":
    resolve: Any = dist.distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    found: dist.ProcessGroup = resolve(label)
    return found


def _exchange(name: str, rows: Tensor, with_ids: bool, label: str) -> list[int]:
    """Rows of every rank, or one sentence on every rank if their kinds differ."""
    dtype = _DTYPES.index(rows.dtype) if rows.dtype in _DTYPES else -1
    header = [rows.shape[0], math.prod(rows.shape[1:]), dtype, int(with_ids)]
    own = torch.tensor(header, device=rows.device)
    group = _group(label)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, own, group=group)
    table = torch.stack(parts).tolist()
    for rank, (_, numbers, kind, ids) in enumerate(table):
        first = table[0]
        if ids != first[3]:
            raise ValueError(f"{name}: ids came on some ranks only; pass them on all or on none.")
        if (numbers, kind) != (first[1], first[2]):
            raise ValueError(
                f"{name}: rank {rank} brings rows of {numbers} {_dtype_name(kind)} numbers, rank 0 "
                f"of {first[1]} {_dtype_name(first[2])}; all ranks must bring the same."
            )
    return [entry[0] for entry in table]


def _dtype_name(kind: int) -> str:
    return str(_DTYPES[kind]).removeprefix("torch.") if kind >= 0 else "other"


def _pad(part: Tensor, longest: int) -> Tensor:
    """(longest, ...) with zeros after the rows of ``part``, contiguous."""
    if part.shape[0] == longest:
        return part.contiguous()
    padded = part.new_zeros((longest, *part.shape[1:]))
    padded[: part.shape[0]] = part
    return padded


@torch.library.custom_op("sede::gather_rows", mutates_args=())
def gather_rows(rows: Tensor, sizes: Sequence[int], rank: int, group: str, checked: bool) -> Tensor:
    """Rows of every rank, one after the other; ``sum_to_owner`` is its transpose."""
    if not checked:
        found = _exchange("gather_with_grad", rows, False, group)
        if found != list(sizes):
            raise ValueError(
                "gather_with_grad: under torch.compile every rank must bring batches of one size, "
                f"got {found}; drop the ragged last batch (drop_last=True) or call it eagerly."
            )
    longest = max(sizes)
    flat = rows.new_empty((len(sizes) * longest, *rows.shape[1:]))
    if longest:
        dist.all_gather(list(torch.split(flat, longest)), _pad(rows, longest), group=_group(group))
    if len(set(sizes)) == 1:
        return flat
    parts = torch.split(flat, longest)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


@gather_rows.register_fake
def _(rows: Tensor, sizes: Sequence[int], rank: int, group: str, checked: bool) -> Tensor:
    return rows.new_empty((sum(sizes), *rows.shape[1:]))


@torch.library.custom_op("sede::sum_to_owner", mutates_args=())
def sum_to_owner(
    gradient: Tensor, sizes: Sequence[int], rank: int, group: str, checked: bool
) -> Tensor:
    """The sum over all ranks of this rank's part of ``gradient`` (sum B, ...)."""
    longest = max(sizes)
    own = gradient.new_empty((longest, *gradient.shape[1:]))
    if longest:
        parts = [_pad(part, longest) for part in torch.split(gradient, list(sizes))]
        dist.reduce_scatter(own, parts, group=_group(group))
    return own[: sizes[rank]].clone() if sizes[rank] != longest else own


@sum_to_owner.register_fake
def _(gradient: Tensor, sizes: Sequence[int], rank: int, group: str, checked: bool) -> Tensor:
    return gradient.new_empty((sizes[rank], *gradient.shape[1:]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.settings = inputs[1:]


gather_rows.register_autograd(
    lambda ctx, gradient: (sum_to_owner(gradient, *ctx.settings), None, None, None, None),
    setup_context=_keep,
)
sum_to_owner.register_autograd(
    lambda ctx, gradient: (gather_rows(gradient, *ctx.settings), None, None, None, None),
    setup_context=_keep,
)
