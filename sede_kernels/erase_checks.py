"""What a caller may ask of an erasing: rules, their thresholds, which side goes."""

from sede_kernels.checks import check_bool, check_choice, check_count, check_number
from sede_kernels.fragment_types import Erase

ERASE_RULES = ("mean", "prob", "absolute", "relative", "topk", "quantile")
RULES_WITHOUT_THRESHOLD = ("mean", "prob")


def check_erase(
    name: str,
    *,
    rule: str,
    length: int,
    threshold: float | None = None,
    erase: str = "low",
    keep_min: int = 1,
    renormalize: bool = True,
) -> Erase:
    """The settings of an erasing of ``length`` fragments; a threshold of 0 where it has none.

    Raises:
        TypeError, ValueError: one sentence naming what was expected and what came.
    """
    check_choice(name, "rule", rule, ERASE_RULES)
    check_choice(name, "erase", erase, ("low", "high"))
    check_bool(name, "renormalize", renormalize)
    keep_min = check_count(name, "keep_min", keep_min, least=1)
    value = _check_threshold(name, rule, threshold, length)
    return Erase(rule, value, erase, keep_min, renormalize)


def _check_threshold(name: str, rule: str, threshold: float | None, length: int) -> float:
    if rule in RULES_WITHOUT_THRESHOLD:
        if threshold is not None:
            raise ValueError(
                f"{name}: rule {rule!r} takes no threshold, got {threshold}; leave it out or "
                "use rule='absolute', 'relative', 'topk' or 'quantile'."
            )
        return 0.0
    if threshold is None:
        meaning = {
            "absolute": "the smallest attention to keep",
            "relative": "a share of the largest attention, in [0, 1]",
            "topk": "how many fragments to keep",
            "quantile": "a quantile in [0, 1]",
        }[rule]
        raise ValueError(f"{name}: rule {rule!r} needs threshold, {meaning}.")
    if rule == "topk":
        number = check_number(name, "threshold (k of topk)", threshold, low=1)
        if number != int(number):
            raise ValueError(f"{name}: threshold (k of topk) must be an integer, got {number:g}.")
        return float(min(int(number), max(length, 1)))
    if rule == "absolute":
        return check_number(name, "threshold", threshold)
    return check_number(name, f"threshold ({rule})", threshold, low=0.0, high=1.0)
