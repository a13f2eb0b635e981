"""Plain PyTorch against a bank: eager, compiled, chunked, attention, linear_cross_entropy."""

import shutil
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..case import Case, Inputs, Outputs, Run, Variant, with_gradient

_TEMPERATURE = 0.07
# Similarities of one chunk: what a second-level cache holds on a CPU, what fills a GPU.
_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}


class Options(Protocol):
    """What the losses need to know; see ``operations.bank.LossOptions``."""

    @property
    def hardness(self) -> float:
        """Beta."""

    @property
    def detach(self) -> bool:
        """Whether weights are constants."""

    @property
    def masked(self) -> bool:
        """Whether ids mask."""


def dense_bank(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Floating rows of the bank."""
    rows: Tensor = inputs["rows"].to(dtype)
    scale = inputs["row_scale"]
    return rows if scale is None else rows * scale.to(dtype).unsqueeze(1)


def eager_rows(
    query: Tensor, positive: Tensor, bank: Tensor, same: Tensor | None, options: Options
) -> Tensor:
    """Row losses as a user writes them: the matrix of logits, cross entropy in fp32."""
    wide = torch.promote_types(query.dtype, torch.float32)
    positive_s = (query * positive).sum(dim=1, keepdim=True).to(wide)
    s = (query @ bank.T).to(wide)
    if same is not None:
        s = s.masked_fill(same, -torch.inf)
    logits = s / _TEMPERATURE
    if options.hardness:
        weight_of = s.detach() if options.detach else s
        count = (~same).sum(dim=1, keepdim=True) if same is not None else s.shape[1]
        log_count = torch.as_tensor(count, dtype=wide, device=s.device).log()
        logits = logits + F.log_softmax(options.hardness * weight_of, dim=1) + log_count
    logits = torch.cat([positive_s / _TEMPERATURE, logits], dim=1)
    target = torch.zeros(query.shape[0], dtype=torch.int64, device=query.device)
    return F.cross_entropy(logits, target, reduction="none")


def _same(i: Inputs, options: Options) -> Tensor | None:
    return i["query_ids"].unsqueeze(1) == i["bank_ids"] if options.masked else None


def _eager(options: Options, compiled: bool) -> Callable[[Case, list[Inputs]], Run]:
    def build(case: Case, sets: list[Inputs]) -> Run:
        def loss(i: Inputs) -> Tensor:
            bank = dense_bank(i, case.query_dtype)
            rows = eager_rows(i["query"], i["positive"], bank, _same(i, options), options)
            return rows.mean()

        function = torch.compile(loss, dynamic=False) if compiled else loss

        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]
            return with_gradient(case, lambda: function(i), {"grad_query": i["query"]}, "loss")

        return run

    return build


class _ChunkedLoss(torch.autograd.Function):
    """The honest floor: PyTorch over chunks of the bank, query gradient finished in the forward.

    Unit vectors let every exponential be taken relative to the largest possible value, exp(c).
    """

    @staticmethod
    def forward(ctx, query: Tensor, i: Inputs, options: Options) -> Tensor:  # type: ignore[no-untyped-def]
        it = 1 / _TEMPERATURE
        scales = [it + options.hardness] + ([options.hardness] if options.hardness else [])
        weights = [it] if options.detach or not options.hardness else [scales[0], -scales[1]]
        rows, positive = i["rows"], i["positive"]
        need = ctx.needs_input_grad[0]
        count = torch.full((query.shape[0],), rows.shape[0], device=query.device)
        wide = torch.promote_types(query.dtype, torch.float32)
        sums = [query.new_zeros(query.shape[0], dtype=wide) for _ in scales]
        outs = [torch.zeros_like(query, dtype=wide) for _ in (weights if need else [])]
        step = max(512, _CHUNK_ELEMENTS[query.device.type] // query.shape[0])
        for start in range(0, rows.shape[0], step):
            chunk = rows[start : start + step]
            if i["row_scale"] is not None:
                chunk = chunk * i["row_scale"][start : start + step, None]
            chunk = chunk.to(query.dtype)
            s = (query @ chunk.T).to(wide)
            if options.masked:
                same = i["query_ids"].unsqueeze(1) == i["bank_ids"][start : start + step]
                s.masked_fill_(same, -torch.inf)
                count -= same.sum(dim=1)
            for e, scale in enumerate(scales):
                p = (s - 1).mul_(scale).exp_()
                sums[e] += p.sum(dim=1)
                if e < len(outs):
                    outs[e] += p.to(chunk.dtype) @ chunk
        lse = sums[0].log() + scales[0]
        if options.hardness:
            lse = lse + count.to(wide).log() - sums[1].log() - scales[1]
        logit = (query * positive).sum(dim=1).to(wide) * it
        if need:
            mean = sum(w * o / t.unsqueeze(1) for w, o, t in zip(weights, outs, sums, strict=False))
            share = torch.sigmoid(lse - logit).unsqueeze(1) / query.shape[0]
            ctx.save_for_backward((share * (mean - it * positive)).to(query.dtype))
        return F.softplus(lse - logit).mean()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (saved,) = ctx.saved_tensors
        return saved * grad, None, None


def _chunked(options: Options) -> Callable[[Case, list[Inputs]], Run]:
    def build(case: Case, sets: list[Inputs]) -> Run:
        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]
            query = i["query"]
            return with_gradient(
                case, lambda: _ChunkedLoss.apply(query, i, options), {"grad_query": query}, "loss"
            )

        return run

    return build


def attention_lse(query: Tensor, bank: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(O, L) of single-head attention with V = K = bank, by torch's fused kernels."""
    q, m = query[None, None], bank[None, None]  # [1, 1, B, D], [1, 1, K, D]
    aten = torch.ops.aten
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, m, m, scale=scale)
    elif query.dtype == torch.float32 or query.shape[1] > 256:
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(
            q, m, m, None, True, scale=scale
        )
    else:
        out, lse, *_ = aten._scaled_dot_product_flash_attention(q, m, m, scale=scale)
    return out[0, 0], lse[0, 0, : query.shape[0]]


class _AttentionLoss(torch.autograd.Function):
    """InfoNCE from attention's output and LSE."""

    @staticmethod
    def forward(ctx, query: Tensor, positive: Tensor, bank: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        it = 1 / _TEMPERATURE
        out, lse = attention_lse(query, bank, it)
        logit = (query * positive).sum(dim=1).float() * it
        if ctx.needs_input_grad[0]:
            share = torch.sigmoid(lse - logit).unsqueeze(1) * (it / query.shape[0])
            ctx.save_for_backward((share * (out.float() - positive.float())).to(query.dtype))
        return F.softplus(lse.float() - logit).mean()

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        (saved,) = ctx.saved_tensors
        return saved * grad, None, None


def _attention(case: Case, sets: list[Inputs]) -> Run:
    def run(turn: int) -> Outputs:
        i = sets[turn % len(sets)]
        query = i["query"]

        def compute() -> Tensor:
            bank = dense_bank(i, case.query_dtype)
            loss: Tensor = _AttentionLoss.apply(query, i["positive"], bank)
            return loss

        return with_gradient(case, compute, {"grad_query": query}, "loss")

    return run


def loss_from_cross_entropy(i: Inputs, cross_entropy: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """InfoNCE from a classifier's cross entropy over the bank with row 0 as everyone's target.

    Its value is L - s_0 / tau: adding the target's logit back leaves the log-sum-exp, which the
    positive joins. ``cross_entropy(scaled query, target)`` returns row losses.
    """
    query = i["query"]
    scaled = query / _TEMPERATURE
    target = torch.zeros(query.shape[0], dtype=torch.int64, device=query.device)
    wide = torch.promote_types(query.dtype, torch.float32)
    row = i["rows"][0].to(wide)
    lse = cross_entropy(scaled, target).to(wide) + (scaled.to(wide) * row).sum(dim=1)
    logit = (scaled.to(wide) * i["positive"].to(wide)).sum(dim=1)
    return F.softplus(lse - logit).mean()


def _linear_cross_entropy(case: Case, sets: list[Inputs]) -> Run:
    # The automatic rule picks chunks of 1 to 8 rows on a bank of this shape; name a fair one.
    chunk = min(case.B, max(32, (1 << 22) // case.K))
    settings = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)

    def run(turn: int) -> Outputs:
        i = sets[turn % len(sets)]

        def rows(scaled: Tensor, target: Tensor) -> Tensor:
            loss: Tensor = F.linear_cross_entropy(
                scaled, i["rows"], target, reduction="none", options=settings
            )
            return loss

        return with_gradient(
            case, lambda: loss_from_cross_entropy(i, rows), {"grad_query": i["query"]}, "loss"
        )

    return run


def no_compiler(case: Case, device: torch.device) -> str | None:
    """torch.compile needs a C++ compiler on a CPU."""
    if device.type == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return "needs a C++ compiler (g++)"
    return None


def _float_bank(case: Case, device: torch.device) -> str | None:
    return "has no int8 bank" if case.dtype == "int8" else None


def _no_linear_cross_entropy(case: Case, device: torch.device) -> str | None:
    if not hasattr(F, "linear_cross_entropy"):
        return f"needs torch >= 2.13, got {torch.__version__}"
    return _float_bank(case, device)


def variants(options: Options) -> list[Variant]:
    """Those that know the options."""
    found = [
        Variant("eager", "eager", _eager(options, compiled=False)),
        Variant("torch.compile", "peer", _eager(options, compiled=True), no_compiler),
        Variant("chunked torch", "peer", _chunked(options)),
    ]
    if not options.hardness and not options.masked:
        found += [
            Variant("attention V=K", "peer", _attention),
            Variant(
                "linear_cross_entropy", "peer", _linear_cross_entropy, _no_linear_cross_entropy
            ),
        ]
    return found


def wanted(case: Case) -> int:
    """How many hardest rows the case asks for."""
    return int(case.sizes.get("k", 1))


def _best(found: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row: a maximum is cheaper than a top-k of one."""
    if k == 1:
        value, index = found.max(dim=1, keepdim=True)
    else:
        value, index = found.topk(min(k, found.shape[1]), dim=1)
    return value, index


def _hardest(chunked: bool) -> Callable[[Case, list[Inputs]], Run]:
    def build(case: Case, sets: list[Inputs]) -> Run:
        step = max(512, _CHUNK_ELEMENTS["cpu"] // case.B) if chunked else case.K
        k = wanted(case)

        @torch.no_grad()
        def run(turn: int) -> Outputs:
            i = sets[turn % len(sets)]
            query, rows = i["query"], i["rows"]
            best = where = query.new_empty((case.B, 0))
            for start in range(0, case.K, step):
                chunk = rows[start : start + step]
                if i["row_scale"] is not None:
                    chunk = chunk * i["row_scale"][start : start + step, None]
                found = query @ chunk.to(query.dtype).T
                value, index = _best(found, k)
                if start == 0:
                    best, where = value, index
                else:
                    both = torch.cat([best, value], dim=1)
                    best, kept = _best(both, k)
                    where = torch.cat([where, index + start], dim=1).gather(1, kept)
            return {"values": best}

        return run

    return build


def hardest_variants() -> list[Variant]:
    """Whole similarity matrix, and chunk by chunk."""
    return [
        Variant("eager", "eager", _hardest(chunked=False)),
        Variant("chunked torch", "peer", _hardest(chunked=True)),
    ]
