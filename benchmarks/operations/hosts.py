"""Losses of host code bases, each beside our drop-in: the same inputs, the same value."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sede_kernels import MemoryBank
from sede_kernels.integrations import albef, lightly, moco, open_clip, scan, vsepp
from sede_kernels.integrations import sentence_transformers as st

from ..case import (
    BOTH,
    Case,
    Inputs,
    Operation,
    Outputs,
    Run,
    Variant,
    Work,
    of,
    with_gradient,
)
from ..peers import fragments, packages
from ..peers.torchvision import load_torchvision
from .bank import TEMPERATURE, BankLoss, LossOptions, draw_bank, unit_rows

Build = Callable[[Case, list[Inputs]], Run]
#: (case, an input set) -> a call that returns the loss; its criterion is built outside the clock.
Make = Callable[[Case, Inputs], Callable[[], Tensor]]

_SCALE, _ALPHA = 20.0, 0.4
# No pair lies on the edge of the hinge, where rounding would decide about its gradient.
_MARGIN = 4.0
_SCAN = SimpleNamespace(
    cross_attn="t2i",
    raw_feature_norm="clipped_l2norm",
    agg_func="LogSumExp",
    lambda_softmax=9.0,
    lambda_lse=6.0,
)


@dataclass(frozen=True)
class Host:
    """One code base.

    Attributes:
        sizes: of its case.
        draw: (case, device, generator) -> inputs.
        leaves: those with a gradient.
        formula: the loss as published, any float dtype: truth, yardstick and, for a host that is
            no package, what it runs.
        drop_in: ours, on the best backend here.
        package: the host itself, where it is a package.
        subclass: whether the drop-in is built on the package's classes.
    """

    sizes: dict[str, int]
    draw: Callable[[Case, torch.device, torch.Generator], Inputs]
    leaves: tuple[str, ...]
    formula: Callable[[Inputs], Tensor]
    drop_in: Make
    package: Variant | None = None
    subclass: bool = False


def _outputs(
    case: Case, leaves: tuple[str, ...], inputs: Inputs, compute: Callable[[], Tensor]
) -> Outputs:
    return with_gradient(case, compute, {f"grad_{name}": inputs[name] for name in leaves}, "loss")


def _build(leaves: tuple[str, ...], make: Make) -> Build:
    def build(case: Case, sets: list[Inputs]) -> Run:
        calls = [make(case, i) for i in sets]

        def run(turn: int) -> Outputs:
            n = turn % len(sets)
            return _outputs(case, leaves, sets[n], calls[n])

        return run

    return build


class HostLoss(Operation):
    """A host's loss; its bank is full and takes the batch in after the loss."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def draw(self, case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
        """The host's inputs."""
        inputs = self.host.draw(case, device, generator)
        for name in self.host.leaves:
            inputs[name] = inputs[name].detach().requires_grad_(case.backward)
        return inputs

    def truth(self, case: Case, inputs: Inputs) -> Outputs:
        """The formula in fp64."""
        wide = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                wide[name] = value.detach().double().requires_grad_(value.requires_grad)
        return self.yardstick(case, wide)

    def yardstick(self, case: Case, inputs: Inputs) -> Outputs:
        """The formula in the inputs' dtype."""
        return _outputs(case, self.host.leaves, inputs, lambda: self.host.formula(inputs))

    def work(self, case: Case) -> Work:
        """Not counted: a host reads and writes what its loop happens to need."""
        return Work("not counted", None, "not counted", None)

    def variants(self, case: Case) -> list[Variant]:
        """Ours, the published formula, the package."""
        host, package = self.host, self.host.package
        ours = Variant("drop-in", "ours", _build(host.leaves, host.drop_in))
        if package is not None and host.subclass:
            ours = replace(ours, absent=package.absent)
        loop = _build(host.leaves, lambda _, i: lambda: host.formula(i))
        found = [ours, Variant("published formula", "eager", loop)]
        return found if package is None else [*found, package]


def _fill(bank: MemoryBank | None, rows: Tensor, ids: Tensor | None = None) -> None:
    """A full bank, the next write at slot 0."""
    if bank is not None:
        bank.to(rows.device).enqueue(rows, ids)


def _cross_entropy(logits: Tensor) -> Tensor:
    """Mean over rows whose right answer is the diagonal."""
    return F.cross_entropy(logits, torch.arange(logits.shape[0], device=logits.device))


def _moco_formula(i: Inputs) -> Tensor:
    """The key's logit first, then the queue, which MoCo copies each step."""
    query, queue = i["query"], i["rows"].T.clone()
    positive = (query * i["positive"]).sum(dim=1, keepdim=True)
    logits = torch.cat([positive, query @ queue], dim=1) / TEMPERATURE
    target = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    return F.cross_entropy(logits, target)


def _moco(case: Case, i: Inputs) -> Callable[[], Tensor]:
    queue = moco.MoCoQueue(case.D, case.K, TEMPERATURE)
    _fill(queue.bank, i["rows"])

    def step() -> Tensor:
        loss = queue(i["query"], i["positive"])
        queue.dequeue_and_enqueue(i["positive"])
        return loss

    return step


def _lightly_formula(i: Inputs) -> Tensor:
    unit = {name: F.normalize(i[name], dim=1) for name in ("query", "positive")}
    return _moco_formula(i | unit)


def _lightly(case: Case, i: Inputs) -> Callable[[], Tensor]:
    criterion = lightly.NTXentLoss(TEMPERATURE, memory_bank_size=(case.K, case.D))
    _fill(criterion.memory_bank, i["rows"])
    return lambda: criterion(i["query"], i["positive"])


def _memory_formula(i: Inputs) -> Tensor:
    """The first B slots hold the positives; every other slot is of another label."""
    query = F.normalize(i["query"], dim=1)
    memory = torch.cat([i["positive"], i["rows"][len(query) :]])
    return _cross_entropy(query @ F.normalize(memory, dim=1).T / TEMPERATURE)


def _memory(case: Case, i: Inputs) -> Callable[[], Tensor]:
    from sede_kernels.integrations.metric_learning import CrossBatchMemory, WeightedNTXentLoss

    memory = CrossBatchMemory(WeightedNTXentLoss(TEMPERATURE), case.D, memory_size=case.K)
    memory.embedding_memory = i["rows"].clone()
    memory.label_memory = torch.arange(case.K, device=i["rows"].device)
    memory.has_been_filled = True
    labels = torch.arange(case.B, device=i["rows"].device).repeat(2)
    stored = torch.arange(2 * case.B, device=labels.device) >= case.B

    def step() -> Tensor:
        memory.queue_idx = 0  # always into the slots that bear the queries' labels
        return memory(torch.cat([i["query"], i["positive"]]), labels, enqueue_mask=stored)

    return step


def _pairs(case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
    """(B, D) unit rows of both sides, the right ones at a cosine of 0.3: a loss of order 1."""
    query = unit_rows(case.B, case.D, generator, device)
    near = query + 3 * unit_rows(case.B, case.D, generator, device)
    return {"query": query, "positive": F.normalize(near, dim=1)}


def _clip_formula(i: Inputs) -> Tensor:
    logits = i["query"] @ i["positive"].T / TEMPERATURE
    return (_cross_entropy(logits) + _cross_entropy(logits.T)) / 2


def _clip(loss: Callable[..., Any], i: Inputs) -> Callable[[], Tensor]:
    scale = torch.tensor(1 / TEMPERATURE, device=i["query"].device)
    return lambda: loss(i["query"], i["positive"], scale)


def _real_clip(case: Case, i: Inputs) -> Callable[[], Tensor]:
    load_torchvision()
    from open_clip.loss import ClipLoss

    return _clip(ClipLoss(cache_labels=True), i)


def _sentences_formula(i: Inputs) -> Tensor:
    query, document = (F.normalize(i[name], dim=1) for name in ("query", "positive"))
    return _cross_entropy(_SCALE * query @ document.T)


def _sentences(loss: Any, i: Inputs) -> Callable[[], Tensor]:
    return lambda: loss.compute_loss_from_embeddings([i["query"], i["positive"]], None)


def _real_sentences(case: Case, i: Inputs) -> Callable[[], Tensor]:
    load_torchvision()
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    return _sentences(MultipleNegativesRankingLoss(torch.nn.Identity(), _SCALE), i)


def _queues_draw(case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
    """Both features, their momentum twins, both queues; two entries of each id in a queue."""
    text, image = (draw_bank(case, device, generator) for _ in range(2))
    return {
        "image": text["query"],
        "text": F.normalize(text["query"].detach() + image["query"].detach(), dim=1),
        "image_m": text["positive"],
        "text_m": image["positive"],
        "image_rows": image["rows"],
        "text_rows": text["rows"],
        "ids": text["query_ids"],
        "bank_ids": text["bank_ids"],
    }


def _queues_formula(i: Inputs) -> Tensor:
    """Targets of (B, B + K), mixed with the momentum model's softmax; queues copied each step."""
    same = i["ids"].unsqueeze(1) == torch.cat([i["ids"], i["bank_ids"]])
    hard = same / same.sum(dim=1, keepdim=True)
    total = i["image"].new_zeros(())
    for side, other in (("image", "text"), ("text", "image")):
        keys = torch.cat([i[f"{other}_m"].T, i[f"{other}_rows"].T.clone()], dim=1)
        with torch.no_grad():
            soft = F.softmax(i[f"{side}_m"] @ keys / TEMPERATURE, dim=1)
            target = _ALPHA * soft + (1 - _ALPHA) * hard
        total = total - (F.log_softmax(i[side] @ keys / TEMPERATURE, dim=1) * target).sum(1).mean()
    return total / 2


def _queues(case: Case, i: Inputs) -> Callable[[], Tensor]:
    queues = albef.RetrievalQueues(case.D, case.K)
    _fill(queues.image_bank, i["image_rows"], i["bank_ids"])
    _fill(queues.text_bank, i["text_rows"], i["bank_ids"])
    features = (i["image"], i["text"], i["image_m"], i["text_m"])
    return lambda: queues(*features, i["ids"], temp=TEMPERATURE, alpha=_ALPHA)


def _hinge(scores: Tensor) -> Tensor:
    """VSE0's sum over both directions."""
    right = scores.diagonal()
    other = ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    costs = (_MARGIN + scores - right.unsqueeze(1), _MARGIN + scores - right)
    return sum((cost.clamp(min=0) * other).sum() for cost in costs)  # type: ignore[return-value]


def _fragments(case: Case, device: torch.device, generator: torch.Generator) -> Inputs:
    """(B, R, D) regions and (B, L, D) words of 5 to L words per caption."""
    regions, words = (
        unit_rows(case.B * count, case.D, generator, device).reshape(case.B, count, case.D)
        for count in (case.R, case.L)
    )
    lengths = torch.randint(5, case.L + 1, (case.B,), **of(generator)).to(device)
    return {"regions": regions, "words": words, "lengths": lengths}


def _scan_formula(i: Inputs) -> Tensor:
    """The published loop over captions."""
    scores = fragments.caption_loop(
        i["regions"],
        i["words"],
        i["lengths"],
        direction="t2i",
        smoothing=_SCAN.lambda_softmax,
        aggregate="lse",
        scale=_SCAN.lambda_lse,
        erase=False,
    )
    return _hinge(scores)


def _scan(case: Case, i: Inputs) -> Callable[[], Tensor]:
    criterion = scan.ContrastiveLoss(_SCAN, margin=_MARGIN)
    return lambda: criterion(i["regions"], i["words"], i["lengths"])


def _package(name: str, leaves: tuple[str, ...], make: Make) -> Variant:
    return Variant(name, "peer", _build(leaves, make), packages.needs(name, False, only="fp32"))


def _bank_package(name: str) -> Variant:
    """As the bank loss measures it; the formula here normalises as the package does."""
    known = {
        variant.name: variant for variant in packages.variants(BankLoss(LossOptions()).truth_of)
    }
    return replace(known[name], truth=None)


_ONE, _BOTH = ("query",), ("query", "positive")
HOSTS = {
    "moco": Host({"B": 256, "K": 65536, "D": 128}, draw_bank, _ONE, _moco_formula, _moco),
    "lightly": Host(
        {"B": 256, "K": 65536, "D": 128},
        draw_bank,
        _ONE,
        _lightly_formula,
        _lightly,
        _bank_package("lightly"),
    ),
    "metric_learning": Host(
        {"B": 128, "K": 4096, "D": 128},
        draw_bank,
        _ONE,
        _memory_formula,
        _memory,
        _bank_package("metric-learning XBM"),
        subclass=True,
    ),
    "blip": Host(
        {"B": 64, "K": 57600, "D": 256}, _queues_draw, ("image", "text"), _queues_formula, _queues
    ),
    "open_clip": Host(
        {"B": 1024, "D": 512},
        _pairs,
        _BOTH,
        _clip_formula,
        lambda case, i: _clip(open_clip.ClipLoss(), i),
        _package("open_clip", _BOTH, _real_clip),
    ),
    "sentence_transformers": Host(
        {"B": 1024, "D": 768},
        _pairs,
        _BOTH,
        _sentences_formula,
        lambda case, i: _sentences(st.MultipleNegativesRankingLoss(torch.nn.Identity(), _SCALE), i),
        _package("sentence-transformers", _BOTH, _real_sentences),
    ),
    "vsepp": Host(
        {"B": 128, "D": 1024},
        _pairs,
        _BOTH,
        lambda i: _hinge(i["query"] @ i["positive"].T),
        lambda case, i: lambda: vsepp.ContrastiveLoss(_MARGIN)(i["query"], i["positive"]),
    ),
    "scan": Host(
        {"B": 128, "R": 36, "L": 20, "D": 1024},
        _fragments,
        ("regions", "words"),
        _scan_formula,
        _scan,
    ),
}


def cases() -> list[Case]:
    """Each host once, forward and backward."""
    return [Case(f"host_{name}", BOTH, "fp32", host.sizes) for name, host in HOSTS.items()]
