"""All ops by name, and the grids of cases."""

from collections.abc import Iterable

from sede_kernels.training.models import MODELS

from .case import BOTH, FORWARD, Case, Operation, Variant
from .operations import hosts
from .operations.bank import BankLoss, Hardest, LossOptions
from .operations.batch import BatchLoss
from .operations.erase import RULES, Erase
from .operations.late import Late
from .operations.pairs import OnePair, Pairs
from .operations.ring import Enqueue
from .operations.scan import MODELS as SCAN_MODELS
from .operations.scan import Scan
from .operations.scores import ScoreLoss
from .operations.steps import STEPS, TrainingStep, compares_fragments

QUEUE = "info_nce_queue"
SCORES = ("score_info_nce", "weighted_score_info_nce")
WEIGHTED, ATTACHED, MASKED = "weighted_info_nce", "weighted_info_nce_attached", "info_nce_masked"

OPERATIONS: dict[str, Operation] = {
    "info_nce": BankLoss(LossOptions()),
    WEIGHTED: BankLoss(LossOptions(hardness=5.0)),
    ATTACHED: BankLoss(LossOptions(hardness=5.0, detach=False)),
    MASKED: BankLoss(LossOptions(masked=True)),
    QUEUE: BankLoss(LossOptions(columns=True)),
    "info_nce_batch": BatchLoss(),
    "score_info_nce": ScoreLoss(0.0),
    "weighted_score_info_nce": ScoreLoss(5.0),
    "hardest": Hardest(),
    "enqueue": Enqueue(),
    **{f"erase_{rule}": Erase(rule) for rule in RULES},
    **{name: Scan(options) for name, options in SCAN_MODELS.items()},
    "late_t2i": Late(),
    **{f"pairs_{way}": Pairs(way) for way in ("t2i", "i2t")},
    **{f"one_pair_{way}": OnePair(way) for way in ("t2i", "i2t")},
    **{f"train_step_{name}": TrainingStep(name) for name in STEPS},
    **{f"host_{name}": hosts.HostLoss(host) for name, host in hosts.HOSTS.items()},
}

_FAST = ("sede cpu", "eager", "chunked torch")
_SWEEP = ("sede cpu", "eager", "chunked torch", "attention V=K", "lightly")
_COMPILED = (
    *_FAST,
    "sede torch",
    "attention V=K",
    "lightly",
    "torch.compile",
    "linear_cross_entropy",
)
# All but metric-learning's memory, which takes B x B x K numbers: it has cases of its own.
_PLAIN = (*_COMPILED, "cce_exact", "cce torch_compile", "liger", "quack")
_XBM = "metric-learning XBM"
_ALL = ()
SCAN_SIZES = {"B": 128, "C": 128, "R": 36, "L": 20, "D": 1024}
# What a batch of SCAN finds in its bank: five captions per image.
# A batch of SCAN against itself and a bank of sets.
SCORE_SIZES = {"B": 128, "N": 4224}
PAIR_SIZES = {"B": 128, "N": 5, "R": 36, "L": 20, "D": 1024}
ONE_PAIR_SIZES = {"B": 1, "N": 1, "R": 36, "L": 12, "D": 256}
LONG_ROWS = {"N": 1024, "L": 4096}
STEP_SIZES = {"B": 64, "R": 36, "F": 512, "K": 2048, "D": 256}
# A bank of sets of fragments: each of its K entries is compared region by word.
FRAGMENT_STEP_SIZES = STEP_SIZES | {"B": 32, "K": 64}


def find(variants: Iterable[Variant], name: str) -> Variant:
    """The variant of that name.

    Raises:
        KeyError: none has it.
    """
    for variant in variants:
        if variant.name == name:
            return variant
    raise KeyError(name)


def _bank(
    op: str, dtype: str, sizes: tuple[int, int, int], only: tuple[str, ...] = (), mode: str = BOTH
) -> Case:
    batch, slots, dim = sizes
    return Case(op, mode, dtype, {"B": batch, "K": slots, "D": dim}, only)


def _steps(names: Iterable[str], bank: int = STEP_SIZES["K"]) -> list[Case]:
    """One training step of each; ``bank``: of those that compare vectors."""
    sizes = {True: FRAGMENT_STEP_SIZES, False: STEP_SIZES | {"K": bank}}
    return [
        Case(f"train_step_{name}", BOTH, "fp32", sizes[compares_fragments(name)]) for name in names
    ]


def cpu_quick() -> list[Case]:
    """Under five minutes on two cores: the design's shapes, every op once, most wanted first."""
    first = (128, 65536, 256)
    kernel = ("sede cpu", "eager")
    cases = [
        _bank("info_nce", "fp32", first, _COMPILED),
        _bank("info_nce", "fp32", (128, 65536, 1024), _FAST),
        _bank("info_nce", "fp32", (512, 16384, 512), _FAST),
        _bank("info_nce", "bf16", first, (*_FAST, "attention V=K")),
        _bank("info_nce", "int8", first, _FAST),
        _bank(WEIGHTED, "fp32", first, _FAST),
        _bank("info_nce", "fp32", (128, 4096, 256), _SWEEP),
        _bank("info_nce", "fp32", (128, 16384, 256), _SWEEP),
        _bank("info_nce", "bf16", (128, 1 << 20, 256), ("sede cpu", "chunked torch")),
    ]
    small = SCAN_SIZES | {"B": 64, "C": 64}
    cases += [
        Case("scan_t2i", BOTH, "fp32", small, (*kernel, "caption loop")),
        Case("scan_i2t", BOTH, "fp32", small, kernel),
        Case("late_t2i", BOTH, "fp32", small),
        *_steps(MODELS),
    ]
    cases += [
        Case(f"erase_{rule}", FORWARD, "fp32", {"N": 65536, "L": 36}, kernel) for rule in RULES
    ]
    cases.append(Case("erase_prob", BOTH, "fp32", LONG_ROWS, kernel))
    cases += [
        _bank(ATTACHED, "fp32", first, _FAST),
        _bank(MASKED, "fp32", first, _FAST),
        _bank("hardest", "fp32", first, _FAST, FORWARD),
        _bank("info_nce", "fp32", first, _FAST, FORWARD),
    ]
    ring = {"N": 128, "K": 65536, "D": 256}
    cases += [Case("enqueue", FORWARD, dtype, ring) for dtype in ("fp32", "int8")]
    cases.append(Case("info_nce_batch", BOTH, "fp32", {"B": 1024, "D": 512}, kernel))
    cases += [Case(name, BOTH, "fp32", SCORE_SIZES, (*kernel, "torch.compile")) for name in SCORES]
    return cases


def _cliffs() -> list[Case]:
    """Where a kernel for large banks can fall behind eager: few queries, small banks, many k."""
    kernel = ("sede cpu", "eager")
    cases = [
        _bank("info_nce", dtype, (batch, slots, 256), kernel)
        for dtype in ("fp32", "bf16")
        for slots in (4096, 65536)
        for batch in ((1, 8, 32) if dtype == "fp32" else (8, 32))
    ]
    cases += [
        _bank(QUEUE, dtype, (batch, slots, 256), (*kernel, "sede cpu, rows"))
        for dtype in ("fp32", "bf16")
        for slots in (4096, 65536)
        for batch in (1, 3, 4, 5, 6, 8, 16, 32, 128)
    ]
    cases += [
        _bank("info_nce", "fp32", (batch, slots, 256), kernel)
        for slots in (64, 256, 1024)
        for batch in (1, 4, 16, 64)
    ]
    cases += [
        Case("hardest", FORWARD, "fp32", {"B": batch, "K": slots, "D": 256, "k": k}, kernel)
        for slots in (256, 4096, 65536)
        for batch in (1, 8, 64, 128)
        for k in (1, 10, 100, 1000)
        if k <= slots
    ]
    pair = ("sede cpu", "sede cpu, chosen pair", "eager")
    cases += [Case(f"one_pair_{way}", BOTH, "fp32", ONE_PAIR_SIZES, pair) for way in ("t2i", "i2t")]
    cases += [
        Case("info_nce_batch", BOTH, "fp32", {"B": batch, "D": dim}, kernel)
        for dim in (256, 512)
        for batch in (8, 64, 128, 256, 512, 1024, 2048, 4096)
    ]
    return cases


def cpu_full() -> list[Case]:
    """The quick cases with every peer, more K, half precision, all similarities, long rows."""
    cases = [_with_every_peer(case) for case in cpu_quick()]
    cases += [
        _with_every_peer(_bank("info_nce", "fp32", (128, k, 256))) for k in (1 << 18, 1 << 20)
    ]
    sizes = ((128, 65536, 1024), (512, 16384, 512))
    cases += [
        _bank("info_nce", dtype, size, _PLAIN) for dtype in ("bf16", "int8") for size in sizes
    ]
    cases.append(_bank("info_nce", "fp16", (128, 65536, 256), _PLAIN))
    cases.append(_bank("hardest", "bf16", (128, 65536, 256), mode=FORWARD))
    cases += _steps(STEPS)
    cases += [_bank(op, "bf16", (128, 65536, 256)) for op in (WEIGHTED, ATTACHED, MASKED)]
    cases += [Case(f"scan_{way}", BOTH, "fp32", SCAN_SIZES) for way in ("t2i", "i2t")]
    pairs = ("sede cpu", "sede torch", "eager", "torch.compile")
    cases += [
        Case(name, BOTH, "fp32", {"B": size, "N": size}) for name in SCORES for size in (128, 1024)
    ]
    cases += [Case(f"bfan_{way}", BOTH, "fp32", SCAN_SIZES, pairs) for way in ("t2i", "i2t")]
    cases += [Case(f"pairs_{way}", BOTH, "fp32", PAIR_SIZES) for way in ("t2i", "i2t")]
    cases += [Case(f"erase_{rule}", BOTH, "fp32", LONG_ROWS) for rule in RULES]
    cases.append(Case("enqueue", FORWARD, "bf16", {"N": 128, "K": 65536, "D": 256}))
    return _unique([*cases, *_cliffs(), *hosts.cases()])


def _with_every_peer(case: Case) -> Case:
    only = _ALL
    if case.op == "info_nce":
        memory = case.B * case.B * case.K <= 128 * 128 * 16384 and case.backward
        only = (*_PLAIN, _XBM) if memory and case.dtype == "fp32" and case.D == 256 else _PLAIN
    return Case(case.op, case.mode, case.dtype, case.sizes, only)


def gpu_quick() -> list[Case]:
    """A few minutes on one GPU: the corners of the grid, and every op once."""
    corners = ((64, 1 << 20, 256), (1024, 65536, 256), (4096, 65536, 1024), (1024, 65536, 512))
    cases = [_bank("info_nce", "bf16", size) for size in corners]
    cases += [_bank("info_nce", dtype, (1024, 65536, 256)) for dtype in ("fp32", "int8")]
    cases += [_bank("info_nce", "bf16", (1024, slots, 256)) for slots in (4096, 1 << 20)]
    cases += [_bank(op, "bf16", (1024, 65536, 256)) for op in (WEIGHTED, ATTACHED, MASKED)]
    cases.append(_bank("hardest", "bf16", (1024, 65536, 256), mode=FORWARD))
    cases.append(_bank("info_nce", "bf16", (1024, 65536, 256), mode=FORWARD))
    cases += [Case(name, BOTH, "bf16", SCAN_SIZES) for name in SCAN_MODELS]
    cases += [Case(f"erase_{rule}", FORWARD, "fp32", {"N": 65536, "L": 1024}) for rule in RULES]
    ring = {"N": 4096, "K": 1 << 20, "D": 256}
    cases += [Case("enqueue", FORWARD, dtype, ring) for dtype in ("bf16", "int8")]
    cases += _steps(STEPS, bank=65536)
    cases += [Case(name, BOTH, "bf16", SCORE_SIZES) for name in SCORES]
    cases += [
        Case("info_nce_batch", BOTH, dtype, {"B": 4096, "D": 512}) for dtype in ("bf16", "fp32")
    ]
    return cases


def gpu_full() -> list[Case]:
    """The whole grid: K x B x D x dtype, then the quick cases of the other ops."""
    cases = [
        _bank("info_nce", dtype, (batch, slots, dim))
        for dtype in ("bf16", "fp16", "fp32", "int8")
        for slots in (4096, 65536, 1 << 20)
        for dim in (128, 256, 512, 768, 1024)
        for batch in (32, 64, 128, 1024, 4096)
    ]
    cases += [
        _bank(op, "bf16", (batch, 65536, dim))
        for op in (WEIGHTED, ATTACHED, MASKED)
        for batch in (128, 1024, 4096)
        for dim in (256, 1024)
    ]
    return _unique([*cases, *gpu_quick(), *hosts.cases()])


def _unique(cases: list[Case]) -> list[Case]:
    found = {case.title: case for case in cases}
    return list(found.values())


GRIDS = {
    ("cpu", True): cpu_quick,
    ("cpu", False): cpu_full,
    ("cuda", True): gpu_quick,
    ("cuda", False): gpu_full,
}
