"""A bank that 2, 3 or 4 processes hold equals the whole bank on one."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.distributed import losses, state, training
from tests.distributed.ranks import run_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What four processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    works = {"losses": losses.work, "state": state.work, "training": training.work}
    yield run_ranks(works, 4, folder)


@pytest.fixture
def losses_of(ranks: list) -> list[dict[str, Any]]:
    return [each["losses"] for each in ranks]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("case", losses.CASES)
def test_losses_and_gradients_equal_one_process(losses_of: list, case: str, world: int) -> None:
    for rank in range(world):
        assert losses_of[rank][f"{world}-{case}-fp64"] < 1e-12
        assert losses_of[rank][f"{world}-{case}-fp32"] < 1e-6


@pytest.mark.parametrize("world", [2, 3, 4])
def test_narrow_banks(losses_of: list, world: int) -> None:
    for rank in range(world):
        assert losses_of[rank][f"{world}-weights-int8"] < 1e-6
        assert losses_of[rank][f"{world}-weights-bf16"] < 1 / 128  # a last bit of a bf16 gradient


@pytest.mark.parametrize("world", [2, 3, 4])
def test_queries_equal_one_process(losses_of: list, world: int) -> None:
    kinds = [name for name in losses_of[0] if name.startswith(f"{world}-")]
    named = [name for name in kinds if not name.endswith(("fp64", "fp32", "int8", "bf16"))]
    assert len(named) == 14
    for name in named:
        assert all(losses_of[rank][name] < 1e-6 for rank in range(world)), name


def test_in_eval_mode_one_rank_works_alone(losses_of: list) -> None:
    assert losses_of[0]["eval"] == 0


def test_found_sets_come_from_their_holders(losses_of: list) -> None:
    assert all(found["fragments"] == 0 for found in losses_of)


def test_all_ranks_refuse_a_slot_that_none_of_them_has(losses_of: list) -> None:
    words = "indices must be below the 21 slots of all ranks, and those of rank 2 are not"
    assert all(words in found["beyond"] for found in losses_of)


def test_ranks_share_the_blocks_of_recall(losses_of: list) -> None:
    assert all(found["recall"] for found in losses_of)


def test_a_compiled_step_on_ragged_batches_is_one_graph(losses_of: list) -> None:
    assert all(found["compiled"] < 1e-6 for found in losses_of[:2])


@pytest.mark.parametrize("new", [1, 2, 3, 4])
@pytest.mark.parametrize(("size", "old"), [(10, 4), (10, 3), (11, 2), (8, 4), (40, 3), (10, 1)])
def test_rows_are_dealt_anew_oldest_first(ranks: list, size: int, old: int, new: int) -> None:
    kept = state.survivors(size, old)
    share, more = divmod(size, new)
    for rank in range(new):
        found = ranks[rank]["state"]["reshard"][f"{size}-{old}-{new}"]
        slots = share + (rank < more)
        if old == new:  # each rank has its own back, wherever its pointer stood
            turned = found["ids"][found["ptr"] :] + found["ids"][: found["ptr"]]
            ids = [n for n in turned if n != -1]
            assert ids == [n for n in kept if n // 100 % 10 == rank]
            continue
        ids = kept[rank::new]
        assert found["ids"] == ids + [-1] * (slots - len(ids))
        assert found["numbers"][: len(ids)] == [n + 0.125 for n in ids]
        assert found["count"] == len(ids) and found["ptr"] == len(ids) % slots
        assert found["step"] == state.STEPS
        overwritten = found["ids"].copy()
        overwritten[len(ids) % slots] = 7
        assert found["next"] == overwritten


@pytest.mark.parametrize(("size", "world"), [(10, 4), (10, 3), (11, 2), (8, 4), (40, 3), (10, 1)])
def test_the_same_ranks_load_bit_for_bit(ranks: list, size: int, world: int) -> None:
    for rank in range(world):
        assert ranks[rank]["state"]["reshard"][f"{size}-{world}-{world}-same"]


def test_other_state_dicts(ranks: list) -> None:
    for rank, found in enumerate(each["state"]["others"] for each in ranks):
        held = [n for n in found["holder"] if n != -1][rank::4]
        assert [n for n in found["plain"] if n != -1] == held
        assert (
            "ids must hold the" in found["wrong"] and "nothing of it was loaded" in found["wrong"]
        )
        assert found["kept"] == found["plain"] and found["int8"]


def test_ragged_ddp_training_equals_one_process(ranks: list) -> None:
    for rank in range(3):
        found = ranks[rank]["training"]["ddp"]
        assert found["weights"] < 1e-10 and found["banks"] < 1e-10 and found["ids"] == 0


@pytest.mark.parametrize("how", ["compiled", "fsdp", "flat"])
def test_compiled_ddp_and_fsdp_training_equal_one_process(ranks: list, how: str) -> None:
    assert all(ranks[rank]["training"][how] < 1e-10 for rank in range(2))


def test_backward_and_enqueue_communicate_nothing(ranks: list) -> None:
    for each in ranks:
        counts = each["training"]["collectives"]
        # Sizes, queries, maxima, sums and the number of rows of the mean.
        assert counts == {"forward": 5, "backward": 0, "enqueue": 0}


@pytest.mark.parametrize(
    "twin",
    ["moco", "moco-host", "lightly", "albef", "open_clip", "sentences", "sentences-gathered"],
)
def test_sharded_twins_equal_one_process(ranks: list, twin: str) -> None:
    assert all(each["training"]["twins"][twin] < 1e-6 for each in ranks)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("dtype", "rank 1 and rank 0 do not make the same call, they differ in dtype"),
        ("ids", "rank 2 and rank 0 do not make the same call, they differ in ids"),
        ("gradients", "rank 1 and rank 0 do not make the same call, they differ in gradients"),
        ("many", "has 3 queries but the bank was made with max_batch=2"),
        ("after", "nothing"),
    ],
)
def test_calls_that_do_not_fit_say_so_on_every_rank(ranks: list, call: str, words: str) -> None:
    for each in ranks:
        assert words in each["training"]["sentences"][call]


def test_a_rank_that_does_not_come_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("absent")
    found = run_ranks({"absent": training.absent}, 2, folder, seconds=3)
    words = "loss of a sharded bank: rank 0 of 2 waited in vain for rank 1. Every rank must make"
    assert found[0]["absent"].startswith(words)
    assert found[1]["absent"] == "skipped"
