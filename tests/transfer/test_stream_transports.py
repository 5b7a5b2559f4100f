"""Transports that issue from the calling thread: on the CPU what they move, on a GPU when, too."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from foremoe.errors import StaleGenerationError, TransferError
from foremoe.planner.problem import Topology
from foremoe.transfer.content import Content
from foremoe.transfer.copies import Copy, Relay
from foremoe.transfer.copies import Path as CopyPath
from foremoe.transfer.cuda_ipc import CudaIpcTransport
from foremoe.transfer.gradients import GradientInbox
from foremoe.transfer.grouped_peer import MOST_OPERATIONS, GroupedPeerTransport, deal_groups
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.host_stream import HostStreamTransport
from foremoe.transfer.paths import PathSpeed
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.schedule.links import Link
from foremoe.transfer.schedule.rounds import rounds_in_order
from foremoe.transfer.shared_weights import locate
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.ticket import Ticket, mark
from foremoe.transfer.torch_wire import TorchWire
from tests.processes import run_ranks
from tests.transfer.cuda import DEVICE, GPU
from tests.transfer.stand_in import transports_of_cuda
from tests.transfer.test_engine import SPARE_SLOTS, Training
from tests.transfer.toy_group import LAYERS, ToyRank, layout, true_weights

CPU = torch.device("cpu")


class Node:
    """A cache of two experts with a second mapping of it, and a transport into two slots."""

    def __init__(self, directory: Path, device: torch.device) -> None:
        self.layout = layout()
        self.cache = HostExpertCache.create(directory, LAYERS, 2, self.layout, local_ranks=1)
        self.mapped = HostExpertCache.attach(self.cache.path, LAYERS, 2, self.layout)
        self.cache.unlink()
        self.pool = SlotPool(2, self.layout, training=False, checksums=False, device=device)
        statistics = StatisticsRecorder(len(LAYERS))
        self.transport = HostStreamTransport(0, self.mapped, self.pool, statistics, 5.0)

    def write(self, expert: int, generation: int) -> None:
        weights = true_weights(generation, LAYERS[0], expert, self.layout)
        self.cache.write(LAYERS[0], expert, weights, generation)

    def post(self, expert: int, generation: int, slot: int = 0) -> None:
        copy = Copy(LAYERS[0], expert, 1, 0, slot, CopyPath.HOST)
        self.pool.expect(slot)
        self.transport.post([copy], generation)

    def use(self, expert: int, generation: int, slot: int = 0) -> dict[str, Tensor]:
        self.pool.wait_settled([slot], 5.0)
        self.pool.use([], {slot: Content(LAYERS[0], expert, generation)})
        return self.pool.weight_views(slot)

    def close(self) -> None:
        self.transport.close(5.0)
        self.mapped.close()
        self.cache.close()


def _same(views: dict[str, Tensor], generation: int, expert: int) -> bool:
    truth = true_weights(generation, LAYERS[0], expert, layout())
    return all(torch.equal(views[name].cpu(), tensor) for name, tensor in truth.items())


def test_host_copies_are_exact_and_never_stale(tmp_path: Path) -> None:
    node = Node(tmp_path, CPU)
    node.write(0, 1)
    node.write(1, 1)
    node.post(1, 1)
    assert _same(node.use(1, 1), 1, 1)
    node.transport.settle(1.0)
    node.post(0, 2, slot=1)
    with pytest.raises(StaleGenerationError, match="holds generation 1"):
        node.use(0, 2, slot=1)
    node.post(0, 1, slot=1)
    node.write(0, 2)  # a home that does not wait for its readers
    with pytest.raises(StaleGenerationError, match="holds generation 2"):
        node.transport.settle(1.0)
    node.close()


def _train_grouped(rank: int) -> tuple[int, int]:
    with transports_of_cuda():
        grouped = ToyRank(rank, 4, None, spare_slots=SPARE_SLOTS, checksums=True)
    training = Training(grouped, seed=3)
    for _ in range(2):
        grouped.step_optimizer()
        training.recompute([training.draw()])
        training.update([training.draw(), training.draw()])
    assert isinstance(grouped.engine._peer, GroupedPeerTransport)
    grouped.close()
    return training.checked_gradients, grouped.engine.statistics().peer_bytes


def test_every_replica_and_gradient_is_exact_in_groups() -> None:
    checked = run_ranks(_train_grouped, 4)
    assert sum(gradients for gradients, _ in checked) > 40
    assert all(received > 0 for _, received in checked)


class _Second(Ticket):
    """Work that took the device a second."""

    def wait(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def seconds_since(self, earlier: Ticket) -> float:
        assert isinstance(earlier, _Second)
        return 1.0


class _Loopback(TorchWire):
    """No other ranks: messages are dropped."""

    def __init__(self) -> None:
        pass

    def exchange(self, sends: object, receives: object) -> None:
        pass


@pytest.mark.parametrize(("per_node", "link"), [(1, Link.NETWORK), (2, Link.PEER)])
def test_groups_from_another_node_measure_the_network(
    per_node: int, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foremoe.transfer.grouped_peer.mark", lambda *_, **__: _Second())
    slab = layout()
    pool = SlotPool(1, slab, training=False, checksums=False)
    statistics = StatisticsRecorder(len(LAYERS))
    ends = PeerEnds(pool, GradientInbox(slab.gradient_layout()), slab, statistics, checksums=False)
    transport = GroupedPeerTransport(
        0, Topology(2, per_node), ends, lambda *_: {}, None, _Loopback(), 5.0
    )
    transport.post([Copy(LAYERS[0], 1, 1, 0, 0, CopyPath.PEER)], 1)
    transport.settle(5.0)
    measured = {each: statistics.take_speed(each) for each in Link}
    assert measured == {each: slab.payload_bytes if each is link else 0 for each in Link}


def test_a_group_never_has_too_many_operations_nor_sends_on_what_it_receives() -> None:
    rng = random.Random(5)
    for _ in range(100):
        ranks, messages = rng.randint(2, 9), rng.randint(1, 40)
        copies = []
        for _ in range(rng.randint(0, 200)):
            source, destination = rng.sample(range(ranks), 2)
            relay = Relay(0, 0) if rng.random() < 0.1 else None
            copies.append(Copy(0, 0, source, destination, 0, CopyPath.PEER, relay=relay))
        dealt = rounds_in_order(copies)
        relays = [any(copies[i].relay for i in round_) for round_ in dealt]
        groups = deal_groups(dealt, messages, relays)
        assert [index for group in groups for index in group] == [i for r in dealt for i in r]
        for group in groups:
            inside = [copies[i] for i in group]
            for rank in range(ranks):
                ends = sum((copy.source == rank) + (copy.destination == rank) for copy in inside)
                assert ends * messages <= max(MOST_OPERATIONS, 2 * messages)
            for index, copy in enumerate(inside):
                before = {other.destination for other in inside[:index]}
                assert copy.relay is None or copy.source not in before


def test_shared_weights_are_found_in_whole_storages() -> None:
    """Fused parameters, transposed ones and one of its own: a view, not a copy, of each."""
    slab = layout(torch.float32)
    fused = torch.randn(3, 6, 5)
    turned = torch.randn(2, 3, 5).transpose(1, 2)
    single = torch.randn(5, 3)
    own = {
        (3, 0): {"gate_up": fused[0], "down": turned[0]},
        (3, 1): {"gate_up": fused[2], "down": turned[1]},
        (5, 4): {"gate_up": fused[1], "down": single},
    }
    experts, storages = locate(own, slab, checksums=True)
    assert len(storages) == 3
    assert all(storage.dtype == torch.uint8 for storage in storages)
    fused += 1
    for (layer, expert), tensors in own.items():
        found = experts.tensors(layer, expert, storages, slab.dtype)
        assert torch.equal(found[0], tensors["gate_up"])
        assert torch.equal(found[1], tensors["down"])
        assert found[0].data_ptr() == tensors["gate_up"].data_ptr()
    assert experts.checksums[5, 4] != experts.checksums[3, 1]


def _take_turns(rank: int, directory: Path) -> None:
    paths: list[Any] = [None, None]
    cache = None
    if rank == 0:
        cache = HostExpertCache.create(directory, LAYERS, 1, layout(), local_ranks=2)
    dist.all_gather_object(paths, str(cache.path) if cache else None)
    cache = cache or HostExpertCache.attach(paths[0], LAYERS, 1, layout())
    if rank == 0:
        with cache.turn(5.0):
            dist.barrier()
            dist.barrier()
    else:
        dist.barrier()
        with pytest.raises(TransferError, match="another rank held its turn"), cache.turn(0.05):
            pass
        dist.barrier()
        with cache.turn(20.0):
            pass
    cache.unlink()
    cache.close()


def test_ranks_register_their_pages_one_after_the_other(tmp_path: Path) -> None:
    run_ranks(_take_turns, 2, tmp_path)


def _train_on_one_gpu(rank: int, directory: Path | None, training: bool) -> list[str]:
    """Two ranks on one device: weights by CUDA IPC, gradients through host memory (or NCCL)."""
    torch.cuda.set_device(DEVICE)
    toy = ToyRank(
        rank,
        2,
        directory,
        spare_slots=SPARE_SLOTS,
        device=DEVICE,
        checksums=training,
        training=training,
        speed=PathSpeed(1.0, 1.0),
    )
    run = Training(toy, seed=11)
    if training:
        run.run()
    else:
        toy.step_optimizer()
        run.recompute([run.draw() for _ in range(20)])
    used = [type(toy.engine._host).__name__, type(toy.engine._peer).__name__]
    toy.close()
    return used


class TestOnGpu:
    pytestmark = GPU

    def test_pinned_copies_are_exact(self, tmp_path: Path) -> None:
        node = Node(tmp_path, DEVICE)
        assert node.transport.pinned
        for generation in range(1, 20):
            node.write(0, generation)
            node.post(0, generation)
            assert _same(node.use(0, generation), generation, 0)
            node.pool.release(0, owing=False)
            node.transport.settle(5.0)
        node.close()

    def test_a_copy_runs_beside_compute(self, tmp_path: Path) -> None:
        """Compute that lasts about a second is still running when the copy has ended."""
        node = Node(tmp_path, DEVICE)
        node.write(0, 1)
        torch.cuda._sleep(2_000_000_000)
        computed = mark(DEVICE)
        node.post(0, 1)
        node.transport.settle(5.0)
        assert not computed.done()
        assert _same(node.use(0, 1), 1, 0)
        node.close()

    def test_a_slot_is_not_overwritten_while_compute_reads_it(self, tmp_path: Path) -> None:
        node = Node(tmp_path, DEVICE)
        node.write(0, 1)
        node.write(1, 1)
        node.post(0, 1)
        views = node.use(0, 1)
        torch.cuda._sleep(1_000_000_000)  # a missing wait would let the next copy in here
        read = {name: view.clone() for name, view in views.items()}
        node.pool.release(0, owing=False)
        node.post(1, 1)
        assert _same(node.use(1, 1), 1, 1)
        assert _same(read, 1, 0)
        node.close()

    def test_compute_waits_for_a_late_copy(self, tmp_path: Path) -> None:
        node = Node(tmp_path, DEVICE)
        node.write(0, 1)
        with torch.cuda.stream(node.transport.stream):
            torch.cuda._sleep(1_000_000_000)
        node.post(0, 1)
        assert _same({name: view.clone() for name, view in node.use(0, 1).items()}, 1, 0)
        node.close()

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("cached", [False, True])
    def test_two_processes_on_one_device(
        self, tmp_path: Path, cached: bool, training: bool
    ) -> None:
        used = run_ranks(_train_on_one_gpu, 2, tmp_path if cached else None, training)
        host = HostStreamTransport.__name__ if cached else "NoneType"
        assert used == [[host, CudaIpcTransport.__name__]] * 2
