"""Packages with a loss of the same value, each imported only when its variant is built."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..case import Case, Inputs, Outputs, Run, Variant, with_gradient
from .bank import dense_bank, loss_from_cross_entropy, no_compiler
from .torchvision import load_torchvision

_TEMPERATURE = 0.07

#: Variant -> (module to import, distribution whose version the record names).
DISTRIBUTIONS = {
    "cce_exact": ("cut_cross_entropy", "cut-cross-entropy"),
    "cce torch_compile": ("cut_cross_entropy", "cut-cross-entropy"),
    "liger": ("liger_kernel.transformers.fused_linear_cross_entropy", "liger-kernel"),
    "quack": ("quack.linear_cross_entropy", "quack-kernels"),
    "lightly": ("lightly.loss.ntx_ent_loss", "lightly"),
    "metric-learning XBM": ("pytorch_metric_learning.losses", "pytorch-metric-learning"),
    "open_clip": ("open_clip.loss", "open_clip_torch"),
    "sentence-transformers": (
        "sentence_transformers.sentence_transformer.losses",
        "sentence-transformers",
    ),
    "memeff": ("memeff", "memeff"),
    "inf-cl": ("inf_cl", "inf-cl"),
}


class BankTruth(Protocol):
    """The op's closed form in fp64 for a bank of the package's own."""

    def __call__(
        self,
        case: Case,
        inputs: Inputs,
        rows: Tensor,
        bank_ids: Tensor,
        masked: bool,
        normalizes: bool = False,
    ) -> Outputs:
        """See ``operations.bank.BankLoss.truth_of``."""


def needs(name: str, cuda: bool, *, only: str = "") -> Callable[[Case, torch.device], str | None]:
    """Availability: installed, importable, on the right device, with a bank it can take.

    Args:
        name: key of ``DISTRIBUTIONS``.
        cuda: whether its kernels need an NVIDIA GPU.
        only: a space-separated list of dtypes it takes; empty for all floating ones.
    """
    module, distribution = DISTRIBUTIONS[name]

    def reason(case: Case, device: torch.device) -> str | None:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            return f"not installed: pip install {distribution}"
        if cuda and device.type != "cuda":
            return "its kernels need an NVIDIA GPU"
        if case.dtype == "int8" or (only and case.dtype not in only.split()):
            return f"has no {case.dtype} bank"
        try:
            if name in ("lightly", "open_clip", "sentence-transformers"):
                load_torchvision()
            importlib.import_module(module)
        except Exception as error:  # whatever a broken install raises
            return f"does not import: {type(error).__name__}: {str(error).splitlines()[0]}"
        return None

    return reason


def from_row_losses(
    make: Callable[[Inputs], Callable[[Tensor, Tensor], Tensor]],
) -> Callable[[Case, list[Inputs]], Run]:
    """A variant from a package's linear cross entropy over (scaled query, target)."""

    def build(case: Case, sets: list[Inputs]) -> Run:
        calls = [make(i) for i in sets]

        def run(turn: int) -> Outputs:
            i, call = sets[turn % len(sets)], calls[turn % len(sets)]
            return with_gradient(
                case, lambda: loss_from_cross_entropy(i, call), {"grad_query": i["query"]}, "loss"
            )

        return run

    return build


def _cce(i: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    from cut_cross_entropy import linear_cross_entropy

    # Without a filter the gradient is exact; its default drops most of the mass of a large bank.
    return lambda scaled, target: linear_cross_entropy(
        scaled, i["rows"], target, reduction="none", filter_eps=None
    )


def _no_compiled_cce(case: Case, device: torch.device) -> str | None:
    return needs("cce torch_compile", False)(case, device) or no_compiler(case, device)


def _cce_compiled(i: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    """What the package itself offers where its kernels do not run."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda scaled, target: linear_cross_entropy(
        scaled, i["rows"], target, reduction="none", impl="torch_compile"
    )


def _liger(i: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    from liger_kernel.transformers.fused_linear_cross_entropy import (
        LigerFusedLinearCrossEntropyLoss,
    )

    loss = LigerFusedLinearCrossEntropyLoss(reduction="none")
    return lambda scaled, target: loss(i["rows"], scaled, target)


def _quack(i: Inputs) -> Callable[[Tensor, Tensor], Tensor]:
    from quack.linear_cross_entropy import linear_cross_entropy_func

    return lambda scaled, target: linear_cross_entropy_func(
        scaled, i["rows"], None, target, reduction="none"
    )


def _lightly(case: Case, sets: list[Inputs]) -> Run:
    load_torchvision()
    from lightly.loss.ntx_ent_loss import NTXentLoss

    losses = []
    for i in sets:
        loss = NTXentLoss(_TEMPERATURE, memory_bank_size=(case.K, case.D)).to(i["query"].device)
        loss.memory_bank.bank = dense_bank(i, case.query_dtype).clone()
        losses.append(loss)

    def run(turn: int) -> Outputs:
        i, loss = sets[turn % len(sets)], losses[turn % len(sets)]
        query, positive = i["query"], i["positive"]
        # The loss itself enqueues the positives once it has used the bank.
        return with_gradient(case, lambda: loss(query, positive), {"grad_query": query}, "loss")

    return run


def _lightly_truth(truth_of: BankTruth) -> Callable[[Case, Inputs], Outputs]:
    def truth(case: Case, inputs: Inputs) -> Outputs:
        return truth_of(case, inputs, inputs["rows"], inputs["bank_ids"], False, normalizes=True)

    return truth


def _bank_labels(case: Case, i: Inputs) -> Tensor:
    """The queries' labels in the first B slots, which their positives take; others are unique."""
    return torch.arange(case.K, device=i["query"].device)


def _cross_batch_memory(case: Case, sets: list[Inputs]) -> Run:
    from pytorch_metric_learning.losses import CrossBatchMemory, NTXentLoss

    memories = []
    for i in sets:
        memory = CrossBatchMemory(NTXentLoss(_TEMPERATURE), case.D, memory_size=case.K)
        memory.embedding_memory = dense_bank(i, case.query_dtype).clone()
        memory.label_memory = _bank_labels(case, i)
        memory.has_been_filled = True
        memories.append(memory)
    labels = torch.arange(case.B, device=sets[0]["query"].device).repeat(2)
    enqueued = torch.arange(2 * case.B, device=labels.device) >= case.B

    def run(turn: int) -> Outputs:
        i, memory = sets[turn % len(sets)], memories[turn % len(sets)]
        memory.queue_idx = 0  # always into the slots that bear the queries' labels
        query = i["query"]

        def compute() -> Tensor:
            both = torch.cat([query, i["positive"]])
            loss: Tensor = memory(both, labels, enqueue_mask=enqueued)
            return loss

        return with_gradient(case, compute, {"grad_query": query}, "loss")

    return run


def _cross_batch_memory_truth(truth_of: BankTruth) -> Callable[[Case, Inputs], Outputs]:
    """Its positives are in the memory and its negatives exclude only the query's own label."""

    def truth(case: Case, inputs: Inputs) -> Outputs:
        bank = dense_bank(inputs, torch.float64).clone()
        bank[: case.B] = inputs["positive"].double()
        return truth_of(case, inputs, bank, _bank_labels(case, inputs), True, normalizes=True)

    return truth


def variants(truth_of: BankTruth) -> list[Variant]:
    """Packages whose loss against a bank is InfoNCE; ``truth_of`` is what they should return."""
    half = "bf16 fp16"
    return [
        Variant("cce_exact", "peer", from_row_losses(_cce), needs("cce_exact", True)),
        Variant(
            "cce torch_compile",
            "peer",
            from_row_losses(_cce_compiled),
            _no_compiled_cce,
        ),
        Variant("liger", "peer", from_row_losses(_liger), needs("liger", True)),
        Variant("quack", "peer", from_row_losses(_quack), needs("quack", True, only=half)),
        Variant(
            "lightly",
            "peer",
            _lightly,
            needs("lightly", False, only="fp32"),
            _lightly_truth(truth_of),
        ),
        Variant(
            "metric-learning XBM",
            "peer",
            _cross_batch_memory,
            needs("metric-learning XBM", False, only="fp32"),
            _cross_batch_memory_truth(truth_of),
        ),
    ]


def memeff_loss() -> Any:
    """The one-sided loss of memeff with the true gradient scale (``stable`` changes it)."""
    from memeff import MemoryEfficientLiTLoss

    return MemoryEfficientLiTLoss(_TEMPERATURE, normalized_inputs=True, stable=False)
