"""recall_at_k against a sort of all scores, written out."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import Tensor

from sede_kernels import recall_at_k
from sede_kernels.functional import ranks
from tests.conftest import unit


def sorted_ranks(scores: Tensor, right: Tensor) -> list[int]:
    """For each row with a right answer the wrong ones that are at least as good, one by one."""
    found = []
    for row, mask in zip(scores.tolist(), right.tolist(), strict=True):
        good = [s for s, r in zip(row, mask, strict=True) if r]
        if good:
            bad = [s for s, r in zip(row, mask, strict=True) if not r]
            found.append(sum(not s < max(good) for s in bad))
    return found


def percent(found: list[int], k: int) -> float:
    return 100.0 * sum(rank < k for rank in found) / len(found)


def check(images: Tensor, texts: Tensor, image_ids: Tensor, text_ids: Tensor) -> None:
    found = recall_at_k(images, texts, image_ids=image_ids, text_ids=text_ids, k=(1, 3, 10))
    right = (image_ids[:, None] == text_ids) & (image_ids[:, None] != -1)
    scores = images.double() @ texts.double().T
    ways = sorted_ranks(scores, right), sorted_ranks(scores.T, right.T)
    for way, recalls, median in zip(ways, found[:2], found.median_ranks, strict=True):
        assert recalls == pytest.approx([percent(way, k) for k in (1, 3, 10)])
        assert median == torch.tensor(way).double().quantile(0.5).floor() + 1
    assert found.queries == (len(ways[0]), len(ways[1]))
    assert found.rsum == pytest.approx(sum(found.image_to_text) + sum(found.text_to_image))
    assert found.k == (1, 3, 10)


@pytest.mark.parametrize("block", [(1024, 2048), (5, 7)], ids=["one-block", "many-blocks"])
@pytest.mark.parametrize("ids", ["captions", "classes", "strangers", "sorted"])
def test_recalls_equal_a_sort(monkeypatch: pytest.MonkeyPatch, block, ids) -> None:
    monkeypatch.setattr(ranks, "BLOCK", block)
    images, texts = unit(23, 8), unit(61, 8)
    image_ids, text_ids = {
        "captions": (torch.randperm(23), torch.randint(0, 23, (61,))),
        "classes": (torch.randint(0, 3, (23,)), torch.randint(0, 3, (61,))),
        "strangers": (torch.randint(-1, 40, (23,)), torch.randint(-1, 40, (61,))),
        "sorted": (torch.arange(23), torch.arange(61) // 3),
    }[ids]
    check(images, texts, image_ids, text_ids)


def test_few_levels_tie_and_a_tie_is_ahead() -> None:
    grid = torch.randint(-1, 2, (40, 4)).double()
    check(grid[:15], grid[15:], torch.arange(15), torch.randint(0, 15, (25,)))


@pytest.mark.parametrize("value", [1.0, float("nan")], ids=["collapsed", "nan"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_collapsed_model_finds_nothing(value: float, dtype: torch.dtype) -> None:
    rows = (unit(1, 24).expand(37, 24) * value).to(dtype)
    ids = torch.arange(37)
    found = recall_at_k(rows, rows, image_ids=ids, text_ids=ids)
    assert found.rsum == 0 and found.median_ranks == (37, 37)


def test_hand_computed() -> None:
    # Image 0 scores its captions 9 and 8; image 1 finds caption 3 behind two wrong ones.
    texts = torch.tensor([[9.0, 7.0], [8.0, 6.0], [1.0, 2.0], [0.0, 5.0]])
    found = recall_at_k(
        torch.eye(2), texts, image_ids=torch.tensor([4, 9]), text_ids=torch.tensor([4, 4, 9, 9])
    )
    assert found.image_to_text == (50, 100, 100) and found.text_to_image == (100, 100, 100)
    assert found.median_ranks == (2, 1) and found.queries == (2, 4) and found.rsum == 550


def test_a_gradient_does_not_follow_and_inputs_stay() -> None:
    images = unit(6, 4).requires_grad_()
    texts, ids = unit(6, 4), torch.tensor([5, 1, 4, 0, 2, 3])
    before = images.detach().clone(), texts.clone(), ids.clone()
    recall_at_k(images, texts, image_ids=ids, text_ids=ids)
    for now, then in zip((images.detach(), texts, ids), before, strict=True):
        assert torch.equal(now, then)


_MEMORY = """
    import resource, sys, torch
    from sede_kernels import recall_at_k
    torch.set_num_threads(1)
    rows = torch.nn.functional.normalize(torch.randn(12000, 8), dim=1)
    ids = torch.arange(12000)
    def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    recall_at_k(rows[:3000], rows[:3000], image_ids=ids[:3000], text_ids=ids[:3000])
    before = peak()
    recall_at_k(rows, rows, image_ids=ids, text_ids=ids)
    print(peak() - before)
"""


def test_memory_is_that_of_blocks() -> None:
    """The scores of 12,000 x 12,000 alone would be 549 MiB."""
    command = [sys.executable, "-c", textwrap.dedent(_MEMORY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 48, f"{done.stdout} MiB"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": torch.ones(3, 5)}, r"texts must be \(M, 4\) to match images, got \(3, 5\)"),
        ({"image_ids": None}, "image_ids must be a torch.Tensor of integers, got None"),
        ({"text_ids": torch.arange(2)}, r"text_ids must be \(3,\), one per row, got \(2,\)"),
        ({"text_ids": torch.arange(3) + 9}, "no image has the id of a text"),
        ({"k": 0}, "k must be an integer >= 1, got 0"),
        ({"k": ()}, "k must hold at least one cutoff"),
        ({"images": torch.ones(0, 4), "image_ids": torch.arange(0)}, "no image has the id"),
    ],
    ids=["width", "no-ids", "short-ids", "strangers", "k-0", "no-k", "empty"],
)
def test_bad_input_gets_one_sentence(change: dict, words: str) -> None:
    rows, ids = torch.ones(3, 4), torch.arange(3)
    given = {"images": rows, "texts": rows, "image_ids": ids, "text_ids": ids, **change}
    with pytest.raises((TypeError, ValueError), match=f"^recall_at_k: .*{words}"):
        recall_at_k(**given)


def test_an_id_that_names_nothing_matches_nothing() -> None:
    """-1 and -2 mark slots without an id; the twos here belong to each other."""
    ids = torch.tensor([-2, -2, -1, 5])
    found = recall_at_k(torch.eye(4), torch.eye(4), image_ids=ids, text_ids=ids, k=np.array([1])[0])
    assert found.queries == (1, 1) and found.image_to_text == (100.0,)
