"""What the engine promises beyond a clean run: reuse, both paths, abandoned plans, bad calls."""

from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    NotReadyError,
    StaleGenerationError,
    TransferError,
)
from foremoe.planner.problem import Topology
from foremoe.transfer.copies import Path as CopyPath
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.statistics import TransferStatistics
from tests.processes import run_ranks
from tests.transfer.toy_group import EXPERTS, LAYERS, ToyRank, layout, random_replicas

TWO_RANKS = np.array([[4, 5], [0, 1]], np.int32)
NOTHING = np.full((2, 2), -1, np.int32)


def _use_and_release(toy: ToyRank, layer: int, wanted: np.ndarray) -> None:
    toy.acquire_checked(layer, wanted, with_gradients=False)
    toy.engine.release(layer)


def _keep(rank: int, directory: Path) -> list[TransferStatistics]:
    toy = ToyRank(rank, 2, directory)
    toy.step_optimizer()
    seen = []
    for wanted in (TWO_RANKS, TWO_RANKS[:, ::-1].copy(), NOTHING, TWO_RANKS):
        toy.promise(3, wanted)
        _use_and_release(toy, 3, wanted)
        seen.append(toy.engine.statistics())
    toy.step_optimizer()
    toy.promise(3, TWO_RANKS)
    _use_and_release(toy, 3, TWO_RANKS)
    seen.append(toy.engine.statistics())
    toy.close()
    return seen


def test_residents_are_not_copied_again_until_weights_change(tmp_path: Path) -> None:
    payload = layout().payload_bytes
    for first, swapped, empty, again, new_weights in run_ranks(_keep, 2, tmp_path):
        assert first.host_bytes + first.peer_bytes == 2 * payload
        for later in (swapped, again):
            assert (sum(later.copies.values()), later.kept) == (0, 2)
            assert later.host_bytes + later.peer_bytes == 0
        assert (sum(empty.copies.values()), empty.kept) == (0, 0)
        assert (sum(new_weights.copies.values()), new_weights.kept) == (2, 0)


def _both_paths(rank: int, directory: Path) -> TransferStatistics:
    toy = ToyRank(rank, 2, directory, speed=PathSpeed(host=1.0, peer=1.0))
    toy.step_optimizer()
    for layer in LAYERS:
        toy.promise(layer, TWO_RANKS)
    for layer in LAYERS:
        _use_and_release(toy, layer, TWO_RANKS)
    toy.close()
    return toy.engine.statistics()


def test_both_paths_share_the_copies(tmp_path: Path) -> None:
    payload = layout().payload_bytes
    for seen in run_ranks(_both_paths, 2, tmp_path):
        assert seen.copies == {CopyPath.HOST: 3, CopyPath.PEER: 3}
        assert (seen.host_bytes, seen.peer_bytes) == (3 * payload, 3 * payload)
        assert seen.exposed_seconds.shape == (len(LAYERS),)


def _one_copy_a_micro_step(rank: int, directory: Path) -> TransferStatistics:
    toy = ToyRank(rank, 2, directory, speed=PathSpeed(host=1.0, peer=1.0))
    toy.step_optimizer()
    for expert in (4, 5, 6, 7):
        wanted = np.array([[expert, -1], [-1, -1]], np.int32)
        toy.promise(3, wanted)
        _use_and_release(toy, 3, wanted)
    toy.close()
    return toy.engine.statistics()


def test_each_micro_step_shares_its_own_copies(tmp_path: Path) -> None:
    seen, _ = run_ranks(_one_copy_a_micro_step, 2, tmp_path)
    assert seen.copies == {CopyPath.HOST: 4}, "earlier micro-steps' copies are done"


def _host_only(rank: int, directory: Path) -> TransferStatistics:
    toy = ToyRank(rank, 2, directory, peer=False)
    for _ in range(3):
        toy.step_optimizer()
        for layer in LAYERS:
            toy.promise(layer, TWO_RANKS)
            assert toy.acquire_checked(layer, TWO_RANKS)[0].gradients is None
            toy.engine.release(layer)
    toy.close()
    return toy.engine.statistics()


def test_forward_only_ranks_need_no_peer_group(tmp_path: Path) -> None:
    for seen in run_ranks(_host_only, 2, tmp_path):
        assert seen.copies == {CopyPath.HOST: 18}


def _nodes(rank: int, directory: Path) -> TransferStatistics:
    toy = ToyRank(rank, 4, directory, topology=Topology(4, 2), speed=PathSpeed(9.0, 1.0))
    rng = np.random.default_rng(3)
    for _ in range(3):
        toy.step_optimizer()
        for layer in LAYERS:
            wanted = random_replicas(rng, toy.home_of(layer), 4, 2)
            toy.promise(layer, wanted)
            toy.acquire_checked(layer, wanted)
            toy.return_gradients(layer)
        toy.collect_gradients()
    toy.close()
    return toy.engine.statistics()


def test_across_nodes_the_peer_path_serves_what_the_cache_cannot(tmp_path: Path) -> None:
    seen = run_ranks(_nodes, 4, tmp_path)
    for path in CopyPath:
        assert sum(one.copies[path] for one in seen) > 0


def _move_homes(rank: int, directory: Path) -> None:
    toy = ToyRank(rank, 4, directory, topology=Topology(4, 2))
    toy.step_optimizer()
    wanted = np.full((4, 2), -1, np.int32)
    wanted[0, 0], wanted[3, 1] = 7, 0
    toy.promise(5, wanted)
    _use_and_release(toy, 5, wanted)
    moved = toy.home[:, ::-1].copy()
    toy.move_homes(moved)
    with pytest.raises(InvalidInputError, match="rank 0 is the home of expert 7"):
        toy.promise(5, wanted)
    with pytest.raises(InvalidInputError, match="made for other homes"):
        toy.engine.promise(5, moved[1][::-1].copy(), wanted)
    wanted[0, 0], wanted[3, 1] = 0, 7
    toy.promise(5, wanted)
    _use_and_release(toy, 5, wanted)
    with pytest.raises(InvalidInputError, match="does not give every rank 2 experts"):
        toy.engine.weights_changed(np.zeros_like(moved))
    with pytest.raises(InvalidInputError, match=r"\[layers, experts\] = \[3, 8\]"):
        toy.engine.weights_changed(moved[:1])
    assert toy.engine.generation == toy.generation
    toy.close()


def test_homes_move_between_generations(tmp_path: Path) -> None:
    run_ranks(_move_homes, 4, tmp_path)


def _abandon(rank: int, directory: Path) -> TransferStatistics:
    toy = ToyRank(rank, 2, directory)
    toy.step_optimizer()
    for layer in LAYERS:
        toy.promise(layer, TWO_RANKS)
    toy.acquire_checked(5, TWO_RANKS)
    toy.engine.abandon()
    with pytest.raises(NotReadyError, match="layer 3: nothing is promised"):
        toy.engine.acquire(3)
    toy.return_gradients(5)
    assert len(toy.collect_gradients()) == 2
    toy.engine.statistics()
    for layer in LAYERS:
        toy.promise(layer, TWO_RANKS)
        _use_and_release(toy, layer, TWO_RANKS)
    toy.promise(3, TWO_RANKS)
    toy.step_optimizer()
    toy.engine.abandon()
    toy.close()
    return toy.engine.statistics()


def test_abandoned_promises_leave_contents_that_are_still_good(tmp_path: Path) -> None:
    for seen in run_ranks(_abandon, 2, tmp_path):
        assert sum(seen.copies.values()) == 0
        assert seen.kept == 8


def _stale(rank: int, directory: Path) -> None:
    toy = ToyRank(rank, 2, directory, peer=False, speed=PathSpeed(1.0, 0.0))
    toy.step_optimizer()
    dist.barrier()
    if rank == 1:
        assert toy.cache is not None
        toy.cache.write(3, 4, toy.parameters[3, 4], generation=2)
    dist.barrier()
    toy.promise(3, TWO_RANKS)
    if rank == 0:
        with pytest.raises(StaleGenerationError, match="layer 3 expert 4 holds generation 2"):
            toy.engine.acquire(3)
        toy.engine.abandon()
    else:
        _use_and_release(toy, 3, TWO_RANKS)
    toy.step_optimizer()
    toy.promise(3, TWO_RANKS)
    _use_and_release(toy, 3, TWO_RANKS)
    toy.close()


def test_another_generation_in_the_cache_is_an_error_never_used(tmp_path: Path) -> None:
    run_ranks(_stale, 2, tmp_path)


def _wrong_calls(rank: int, directory: Path) -> None:
    toy = ToyRank(rank, 2, directory, wait_seconds=10.0)
    engine, home = toy.engine, toy.home_of(3)
    toy.step_optimizer()
    for wanted, message in [
        (np.array([[4, 4], [-1, -1]], np.int32), "an expert twice"),
        (np.array([[0, -1], [-1, -1]], np.int32), "rank 0 is the home of expert 0"),
        (np.array([[8, -1], [-1, -1]], np.int32), r"\[0, 8\)"),
        (np.zeros((2, 3), np.int32), r"\[2, 2\], got int32 \[2, 3\]"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            engine.promise(3, home, wanted)
    with pytest.raises(InvalidInputError, match=r"layer 4: this engine serves \[3, 5, 9\]"):
        engine.promise(4, home, TWO_RANKS)
    for call in (engine.acquire, engine.release):
        with pytest.raises(NotReadyError, match="nothing is promised"):
            call(3)
    engine.promise(3, home, TWO_RANKS)
    assert engine.placement(3).tolist() == TWO_RANKS.tolist()
    with pytest.raises(NotReadyError, match="promised but not acquired"):
        engine.release(3)
    with pytest.raises(NotReadyError, match="last promise is still open"):
        engine.promise(3, home, TWO_RANKS)
    first = toy.acquire_checked(3, TWO_RANKS, with_gradients=False)[0]
    with pytest.raises(NotReadyError, match="acquired already"):
        engine.acquire(3)
    with pytest.raises(NotReadyError, match=r"layers \[3\]: replicas are in use"):
        engine.weights_changed()
    with pytest.raises(NotReadyError, match=r"layers \[3\]: release their replicas first"):
        engine.return_gradients(3)
    first.check_held(first.content)
    with pytest.raises(StaleGenerationError, match="generation 2 was promised"):
        first.check_held(first.content._replace(generation=2))
    engine.release(3)
    with pytest.raises(TransferError, match="was given up before backward"):
        first.check_held(first.content)
    engine.return_gradients(3)
    assert toy.collect_gradients() == [], "acquired without gradients"
    engine.promise(3, home, TWO_RANKS)
    toy.acquire_checked(3, TWO_RANKS)
    with pytest.raises(TransferError, match="was given up before backward"):
        first.check_held(first.content)
    engine.release(3)
    with pytest.raises(NotReadyError, match=r"layers \[3\]: gradients are not home"):
        engine.weights_changed()
    engine.return_gradients(3)
    assert len(toy.collect_gradients()) == 2
    assert toy.collect_gradients() == []
    toy.close()


def test_wrong_calls_say_what_is_wrong_and_change_nothing(tmp_path: Path) -> None:
    run_ranks(_wrong_calls, 2, tmp_path)


def _limits(rank: int, directory: Path) -> int:
    slab = layout()
    gradient = slab.gradient_layout().nbytes
    frame = 2 * (slab.nbytes + gradient)
    needed = 2 * frame + 2 * gradient
    with pytest.raises(ExhaustedError, match=f"need {needed} bytes but the limit is {needed - 1}"):
        ToyRank(rank, 2, directory, limit_bytes=needed - 1)
    toy = ToyRank(rank, 2, directory, limit_bytes=3 * frame + 2 * gradient)
    assert toy.engine.resident
    toy.step_optimizer()
    for _ in range(3):
        for layer in LAYERS:
            toy.promise(layer, TWO_RANKS)
            toy.acquire_checked(layer, TWO_RANKS)
            toy.engine.release(layer)
        toy.engine.return_gradients()
        assert [r.layer for r in toy.collect_gradients()] == [3, 3, 5, 5, 9, 9]
    toy.close()
    return len(toy.engine._returns.ends.inbox._free)


def test_the_byte_limit_covers_slots_and_returning_gradients(tmp_path: Path) -> None:
    assert run_ranks(_limits, 2, tmp_path) == [2, 2], "one layer's gradients at a time"


def _disagree(rank: int) -> None:
    with pytest.raises(ConflictError, match=rf"rank {rank} and ranks \[{1 - rank}\] were given"):
        ToyRank(rank, 2, None, spare_slots=1 + rank)


def test_ranks_with_different_arguments_are_told() -> None:
    run_ranks(_disagree, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": True}, "give add_gradients"),
        ({"training": True, "add_gradients": print}, "give a peer group"),
        ({"topology": Topology(4, 2)}, "serves one node only"),
        ({}, "give a host cache, a peer group or both"),
        ({"rank": 2}, "rank 2 is not one of the group's 2"),
        ({"layers": (3, 3)}, "names a layer twice"),
        ({"home": np.zeros((3, 4), np.int32)}, r"\[layers, experts\] = \[3, 8\]"),
    ],
)
def test_arguments_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "rank": 0,
        "topology": Topology(2, 2),
        "layers": LAYERS,
        "num_experts": EXPERTS,
        "layout": layout(),
        "spare_slots": 2,
        "training": False,
        "cache": None,
        "peer_group": None,
        "home_weights": lambda *_: {},
    }
    if not {"rank", "layers", "home"}.isdisjoint(changes):
        arguments["spare_slots"] = 0
    with pytest.raises(InvalidInputError, match=message):
        TransferEngine(**{**arguments, **changes})
