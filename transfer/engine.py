"""The transfer engine of one rank: replicas there before the layer needs them, gradients home."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import NotReadyError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.timeline.recorder import SpanRecorder
from foremoe.transfer.arguments import check_agreement, check_home_shape, check_paths, check_sizes
from foremoe.transfer.budget import spend
from foremoe.transfer.content import Content
from foremoe.transfer.gradient_returns import GradientReturns
from foremoe.transfer.gradients import GradientInbox, GradientSink
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.ledger import Ledger, Promise
from foremoe.transfer.paths import MicroStepPaths, PathSpeed
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import HomeWeights, own_experts
from foremoe.transfer.replica import Replica
from foremoe.transfer.schedule.links import Link
from foremoe.transfer.schedule.micro_step import warm_up
from foremoe.transfer.schedule.timetable import ANY_TIME, CopyWindow, LayerCopies
from foremoe.transfer.selection import open_host, open_peer
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.statistics import StatisticsRecorder, TransferStatistics
from foremoe.transfer.ticket import mark

_YIELD_SECONDS = 1e-6

_log = logging.getLogger("foremoe.transfer")


class TransferEngine:
    """Driven by the training thread at hook points that all ranks pass in the same order.

    For each use of a layer: ``promise`` (ahead of time), ``acquire``, compute, ``release``. The
    gradients that its replicas add up over several uses go home with ``return_gradients``, or by
    themselves when another expert needs the slot; ``collect_gradients`` waits until they are there.
    After an optimizer step ``weights_changed``. Worker threads copy, or on a CUDA device streams
    beside compute, which then waits on the device; every wait of a thread has a deadline.

    As many layers as the byte limit allows have slots at a time. With slots for all of them
    (``resident``) a replica stays from use to use; with fewer the layers take turns, and at most
    ``frames`` of them may be promised or in use at once.
    """

    def __init__(
        self,
        rank: int,
        topology: Topology,
        layers: Sequence[int],
        num_experts: int,
        layout: SlabLayout,
        spare_slots: int,
        training: bool,
        cache: HostExpertCache | None,
        peer_group: ProcessGroup | None,
        home_weights: HomeWeights,
        add_gradients: GradientSink | None = None,
        limit_bytes: int | None = None,
        wait_seconds: float = 60.0,
        speed: PathSpeed | None = None,
        home: NDArray[np.int32] | None = None,
        checksums: bool = False,
        device: torch.device | None = None,
        device_group: ProcessGroup | None = None,
        spans: SpanRecorder | None = None,
    ) -> None:
        """Construct on all ranks of the EP group together.

        layers: global layer ids. home_weights(layer, expert): the parameters of an expert whose
        home is this rank, in the layout's shapes and dtype. add_gradients: takes what replicas
        elsewhere computed for own experts, by (layer, expert, rank); only for training.
        limit_bytes: for slots and returning gradients. wait_seconds: how long any wait lasts at
        most; one send or receive may last half of it. home: int32 ``[L, E]``, contiguous homes by
        default. checksums: verify every replica's bytes before each use; slow. device: of slots and
        weights, the CPU by default; peer_group is gloo for any, device_group an NCCL group of the
        same ranks for those on CUDA. spans: takes copies and waits.

        Raises ExhaustedError when ``limit_bytes`` does not suffice, InvalidInputError on arguments
        that cannot work, ConflictError when the ranks' arguments differ.
        """
        home = contiguous_homes(len(layers), num_experts, topology.ranks) if home is None else home
        speed = speed or PathSpeed()
        if cache is None:
            speed = replace(speed, host=0.0)
        if peer_group is None:
            speed = replace(speed, peer=0.0, network=0.0)
        if spare_slots > 0 and topology.ranks > 1:
            check_paths(topology, speed, training, add_gradients is not None)
        check_sizes(rank, topology, layers, num_experts, home, cache, layout, peer_group)
        budget = spend(limit_bytes, len(layers), spare_slots, layout, training)
        self.rank = rank
        self.topology = topology
        self.layers = tuple(layers)
        self.layout = layout
        self.training = training
        self.frames = budget.frames
        self.generation = 0
        self._wait_seconds = wait_seconds
        self._cache = cache
        self._checksums = checksums
        self._home_weights = home_weights
        self._ledger = Ledger(layers, home, topology.ranks, spare_slots, budget.frames)
        self._promised: list[LayerCopies] = []  # their copies wait for the end of ``together``
        self._nested = 0
        self._is_first = True
        self._statistics = StatisticsRecorder(len(layers), spans)
        self._pool = SlotPool(budget.frames * spare_slots, layout, training, checksums, device)
        warm_up()  # no deadline runs yet
        if peer_group is not None:
            shape = (topology, self.layers, num_experts, layout, spare_slots, training)
            agreed = (shape, budget, speed, home.tobytes(), checksums, self._pool.device.type)
            check_agreement(agreed, peer_group, wait_seconds)
        inbox = GradientInbox(layout.gradient_layout(), device)
        ends = PeerEnds(self._pool, inbox, layout, self._statistics, checksums)
        # A path gives up at half time, so that another one can serve before the waiter gives up.
        path_seconds = wait_seconds / 2
        self._host = open_host(rank, cache, ends, path_seconds)
        self._peer = open_peer(
            rank, topology, peer_group, device_group, ends, home_weights, self._host, path_seconds
        )
        on_cpu = self._pool.device.type == "cpu"  # elsewhere a stream takes copies as they come
        relay = self._peer is not None and self._peer.relays
        self._paths = MicroStepPaths(topology, speed, layout.payload_bytes, on_cpu, relay)
        self._returns = GradientReturns(
            rank, ends, self._peer, budget.gradient_buffers, add_gradients, wait_seconds
        )
        if rank == 0:
            _log.info("replicas are %s", budget.reason)

    @property
    def device(self) -> torch.device:
        """Of slots and weights."""
        return self._pool.device

    @property
    def spans(self) -> SpanRecorder:
        """Where this rank's spans are recorded."""
        return self._statistics.spans

    @property
    def resident(self) -> bool:
        """Whether every layer has slots of its own."""
        return self.frames == len(self.layers)

    def can_promise(self, layer: int) -> bool:
        """Whether the layer's last use has ended and slots are left for it."""
        return self._ledger.can_open(layer)

    def promise(
        self,
        layer: int,
        home: NDArray[np.int32],
        wanted: NDArray[np.int32],
        pairs: NDArray[np.int64] | NDArray[np.bool_] | None = None,
        window: CopyWindow = ANY_TIME,
    ) -> None:
        """Start bringing in the layer's replicas for its next use.

        home: int32 ``[E]``, the homes the plan was made for. wanted: int32 ``[P, R]``, the expert
        each rank's slots must hold, -1 for none. pairs: ``[P, R]``, about how many pairs it serves
        (default: all alike); one that serves none is kept if it is there, and has no gradients.
        window: when its copies may run; those that cannot, by the speeds the engine knows, are
        dropped with their replicas (see ``placement``). Every rank calls this with the same
        arguments, in the same order. Never blocks, unless gradients must leave the slots and
        ``limit_bytes`` has no room for them on their way.

        Raises InvalidInputError or NotReadyError, with nothing changed.
        """
        serving = None if pairs is None else pairs > 0
        promise, evicted = self._ledger.open(layer, home, wanted, serving)
        self._returns.send(evicted, self.generation)
        filled = promise.filled_slots_of(self.rank)
        for slot in filled:
            self._pool.expect(slot)
        self._statistics.add_kept(len(promise.slots_of(self.rank)) - len(filled))
        value = None
        if pairs is not None:
            value = [int(pairs[f.rank, wanted[f.rank] == f.expert][0]) for f in promise.fills]
        ready, deadline, latest = window
        copies = LayerCopies(layer, tuple(promise.fills), home, ready, deadline, value, latest)
        with self.together():
            self._promised.append(copies)
            crash_point(CrashPoint.PROMISED)
            if self._is_first and copies.fills:  # it need not wait until the others are promised
                self._is_first = False
                self._issue()
                if self._pool.device.type == "cpu":
                    time.sleep(_YIELD_SECONDS)  # the workers get the interpreter, and begin

    @contextmanager
    def together(self) -> Iterator[None]:
        """Promises made inside get one order of copies over all of them, at the outermost end.

        The first promise is the most urgent one: its copies start at once, and those of later ones
        use what it leaves free.
        """
        self._is_first |= not self._nested
        self._nested += 1
        try:
            yield
        finally:
            self._nested -= 1
            if not self._nested:
                self._issue()

    def _issue(self) -> None:
        promised, self._promised = self._promised, []
        if not promised:
            return
        timetable = self._paths.choose(promised)
        for layer, fill in timetable.dropped:
            self._ledger.drop(layer, fill)
        if self._host is not None:
            self._host.post(timetable.copies, self.generation)
        crash_point(CrashPoint.ISSUED)
        if self._peer is not None:
            self._peer.post(timetable.copies, self.generation)

    def placement(self, layer: int) -> NDArray[np.int32]:
        """The expert in each slot of the group under the layer's open promise: int32 ``[P, R]``.

        -1 where there is none: nothing was wanted, or its copy would have come too late. Final once
        the outermost ``together`` has ended.
        """
        return self._ledger.promise(layer).placement

    def acquire(self, layer: int, with_gradients: bool = True) -> list[Replica]:
        """Wait for this rank's replicas of the layer and take them into use, by slot.

        with_gradients: False where no backward follows, which saves zeroing the gradients.

        Raises NotReadyError when nothing was promised, TransferError when a replica did not come,
        StaleGenerationError when it is not the promised one.
        """
        promise = self._ledger.promise(layer)
        if promise.acquired:
            raise NotReadyError(f"layer {layer}: its replicas are acquired already")
        contents = {
            slot: Content(layer, expert, self.generation)
            for slot, expert in promise.slots_of(self.rank)
        }
        filled = promise.filled_slots_of(self.rank)
        kept = [slot for slot in contents if slot not in filled]
        row = self._ledger.row(layer)
        started = time.monotonic()
        self._pool.wait_settled(filled, self._wait_seconds)
        self._pool.wait_kept(kept, self._wait_seconds)
        self._statistics.add_exposed(row, layer, time.monotonic() - started)
        begun = mark(self._pool.device, timed=True)
        self._pool.use(kept, contents)
        ended = mark(self._pool.device, timed=True)
        self._statistics.add_exposed_between(row, begun, ended)
        promise.acquired, promise.with_gradients = True, with_gradients and self.training
        return [
            Replica.in_use(self._pool, slot, content, self._gradients(promise, slot))
            for slot, content in contents.items()
        ]

    def release(self, layer: int) -> None:
        """The layer's replicas have done their work; gradients they computed are owed."""
        promise = self._ledger.acquired(layer)
        self._ledger.close(layer)
        for slot, _ in promise.slots_of(self.rank):
            self._pool.release(slot, self._ledger.owes(slot, self.rank))

    @property
    def owing(self) -> bool:
        """Whether the group's slots hold gradients that ``return_gradients`` must send home."""
        return bool(self._ledger.owing)

    def return_gradients(
        self, layer: int | None = None, staying: NDArray[np.int32] | None = None
    ) -> None:
        """Send the gradients that a layer's (every layer's) slots owe home; blocks as ``promise``.

        staying: int32 ``[P, R]``, the experts whose replicas will add to theirs, -1 for none.

        Raises NotReadyError while the layer is in use.
        """
        layers = self._ledger.owing if layer is None else [layer]
        if in_use := sorted(set(layers) & set(self._ledger.in_use())):
            raise NotReadyError(f"layers {in_use}: release their replicas first")
        for each in layers:
            self._returns.send(self._ledger.settle(each, staying), self.generation)

    def collect_gradients(self) -> None:
        """Wait until all gradients on their way have been given to ``add_gradients``.

        Raises TransferError when one is lost or late.
        """
        self._returns.collect()

    def abandon(self) -> None:
        """Drop the promises not acquired yet, on all ranks alike; their contents stay useful."""
        for promise in self._ledger.waiting():
            filled = promise.filled_slots_of(self.rank)
            self._pool.wait_settled(filled, self._wait_seconds)
            for slot in filled:
                self._pool.abandon(slot)
            self._ledger.close(promise.layer)

    def weights_changed(self, home: NDArray[np.int32] | None = None) -> None:
        """Void every replica and publish own experts; on all ranks, after each optimizer step.

        Call it once before the first promise as well. home: int32 ``[L, E]`` when homes moved.

        Raises NotReadyError while replicas are in use or owe gradients, InvalidInputError on
        invalid homes, TransferError when a rank of this node does not follow in time.
        """
        self._ledger.check_idle()
        home = self._ledger.home if home is None else home
        check_home_shape(home, self._ledger.home.shape, self.topology)
        own = own_experts(home, self.rank, self.layers, self._home_weights)
        for tensors in own.values():
            self.layout.check(tensors)
        self.abandon()
        self._pool.wait_all_free(self._wait_seconds)
        for transport in (self._host, self._peer):
            if transport is not None:
                transport.settle(self._wait_seconds)
        self._pool.forget_all()
        self._ledger.forget(home)
        self._paths.restart()
        self.generation += 1
        crash_point(CrashPoint.GENERATION)
        if self._cache is not None:
            per_node = self.topology.ranks_per_node
            self._cache.publish(
                self.rank % per_node,
                home // per_node == self.topology.node_of(self.rank),
                own,
                self.generation,
                self._checksums,
                self._wait_seconds,
            )
        if self._peer is not None:
            self._peer.weights_changed(own, self.generation)

    def statistics(self) -> TransferStatistics:
        """What happened since the last call."""
        return self._statistics.take()

    def measured_speed(self) -> PathSpeed:
        """What this rank's links reached since the last call; 0 where one carried nothing."""
        return PathSpeed(*(self._statistics.take_speed(link) for link in Link))

    def apply_speed(self, measured: Sequence[PathSpeed]) -> None:
        """Choose paths by what the ranks measured: on all ranks the same, at the same point."""
        self._paths.apply_speed(measured)

    @property
    def peer_path_lost(self) -> bool:
        """Whether this rank lost the peer path; gradients cannot return any more."""
        return self._peer is not None and self._peer.lost

    def close(self, wait_seconds: float = 5.0) -> None:
        """End the worker threads; promises that are still open are void."""
        if self._peer is not None:
            self._peer.close(wait_seconds)
        if self._host is not None:
            self._host.close(wait_seconds)

    def _gradients(self, promise: Promise, slot: int) -> dict[str, Tensor] | None:
        """Where a replica in use adds its gradients: to those it owes already, if any."""
        if not (promise.with_gradients and promise.serves(self.rank, slot)):
            return None
        return self._pool.gradient_views(slot, keep=self._ledger.owes(slot, self.rank))
