"""The transfer engine of one rank: replicas there before the layer needs them, gradients home."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import NotReadyError, TransferError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.timeline.recorder import SpanRecorder
from foremoe.transfer.arguments import check_agreement, check_home_shape, check_paths, check_sizes
from foremoe.transfer.budget import spend
from foremoe.transfer.content import Content
from foremoe.transfer.gradients import GradientCopy, GradientInbox, GradientSink, ReturnedGradient
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.ledger import Ledger, Promise
from foremoe.transfer.paths import MicroStepPaths, PathSpeed
from foremoe.transfer.peer_rounds import PeerEnds
from foremoe.transfer.peer_transport import HomeWeights
from foremoe.transfer.replica import Replica
from foremoe.transfer.schedule.links import Link
from foremoe.transfer.schedule.micro_step import warm_up
from foremoe.transfer.schedule.timetable import ANY_TIME, CopyWindow, LayerCopies
from foremoe.transfer.selection import open_host, open_peer
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.speed import UNMEASURED, feed_back
from foremoe.transfer.statistics import StatisticsRecorder, TransferStatistics
from foremoe.transfer.ticket import mark

SLOW_SECONDS = 5.0

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
        speed = replace(
            speed,
            host=speed.host if cache else 0.0,
            peer=speed.peer if peer_group else 0.0,
            network=speed.network if peer_group else 0.0,
        )
        if spare_slots > 0 and topology.ranks > 1:
            check_paths(topology, speed, training)
        check_sizes(rank, topology, layers, num_experts, home, cache, layout, peer_group)
        budget = spend(limit_bytes, len(layers), spare_slots, layout, training)
        self.rank = rank
        self.topology = topology
        self.layers = tuple(layers)
        self.num_experts = num_experts
        self.layout = layout
        self.spare_slots = spare_slots
        self.training = training
        self.frames = budget.frames
        self.generation = 0
        self._gradient_buffers = budget.gradient_buffers
        self._wait_seconds = wait_seconds
        self._speed = speed
        self._speed_is_measured = False
        self._cache = cache
        self._checksums = checksums
        self._home_weights = home_weights
        self._add_gradients = add_gradients or _nowhere
        self._ledger = Ledger(layers, home, topology.ranks, spare_slots, budget.frames)
        self._returning = [0] * topology.ranks
        self._dropped = 0  # replicas of the whole group since speeds were last applied
        self._promised: list[LayerCopies] = []  # their copies wait for the end of ``together``
        self._nested = 0
        self._is_first = True
        self._statistics = StatisticsRecorder(len(layers), spans)
        self._pool = SlotPool(budget.frames * spare_slots, layout, training, checksums, device)
        self._inbox = GradientInbox(layout.gradient_layout(), device)
        warm_up()  # no deadline runs yet
        if peer_group is not None:
            everyone_knows = (topology, self.layers, num_experts, layout, spare_slots, training)
            agreed = (
                everyone_knows,
                budget,
                speed,
                home.tobytes(),
                checksums,
                self._pool.device.type,
            )
            check_agreement(agreed, peer_group, wait_seconds)
        self._paths = MicroStepPaths(topology, speed, layout.payload_bytes, chunks=1)
        # A path gives up at half time, so that another one can serve before the waiter gives up.
        path_seconds = wait_seconds / 2
        self._host = (
            open_host(rank, cache, self._pool, self._statistics, path_seconds) if cache else None
        )
        ends = PeerEnds(self._pool, self._inbox, layout, self._statistics, checksums)
        self._peer = (
            open_peer(
                rank,
                topology,
                peer_group,
                device_group,
                ends,
                home_weights,
                self._host,
                path_seconds,
            )
            if peer_group is not None and topology.ranks > 1
            else None
        )
        if rank == 0:
            _log.info("replicas are %s", budget.reason)

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
        self._send_home(evicted)
        filled = promise.filled_slots_of(self.rank)
        for slot in filled:
            self._pool.expect(slot)
        self._statistics.add_kept(len(promise.slots_of(self.rank)) - len(filled))
        value = None
        if pairs is not None:
            value = [int(pairs[f.rank, wanted[f.rank] == f.expert][0]) for f in promise.fills]
        copies = LayerCopies(
            layer,
            tuple(promise.fills),
            home,
            window.ready_ns,
            window.deadline_ns,
            value,
            window.latest_ns,
        )
        with self.together():
            self._promised.append(copies)
            crash_point(CrashPoint.PROMISED)
            if self._is_first and copies.fills:  # it need not wait until the others are promised
                self._is_first = False
                self._issue()

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
        self._dropped += len(timetable.dropped)
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
        kept = contents.keys() - set(filled)
        started = time.monotonic()
        self._pool.wait_settled(filled, self._wait_seconds)
        self._pool.wait_kept(kept, self._wait_seconds)
        exposed = time.monotonic() - started
        self._statistics.add_exposed(self._ledger.row(layer), exposed)
        self._statistics.spans.waited("copies", exposed, layer)
        if exposed > SLOW_SECONDS:
            _log.warning(
                "degraded: slow copies: layer %d waited %.1f s for its replicas", layer, exposed
            )
        begun = mark(self._pool.device, timed=True)
        self._pool.use(kept, contents)
        ended = mark(self._pool.device, timed=True)
        self._statistics.add_exposed_between(self._ledger.row(layer), begun, ended)
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
            self._send_home(self._ledger.settle(each, staying))

    def collect_gradients(self) -> None:
        """Wait until all gradients on their way have been given to ``add_gradients``.

        Raises TransferError when one is lost or late.
        """
        started = time.monotonic()
        self._returning = [0] * self.topology.ranks
        self._inbox.collect(self._add_gradients, self._wait_seconds)
        exposed = time.monotonic() - started
        self._statistics.add_exposed_gradients(exposed)
        self._statistics.spans.waited("gradients", exposed)

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
        if in_use := self._ledger.in_use():
            raise NotReadyError(
                f"layers {in_use}: replicas are in use; release them before weights change"
            )
        if owing := self._ledger.owing:
            raise NotReadyError(
                f"layers {owing}: gradients are not home, so weights must not change yet"
            )
        home = self._ledger.home if home is None else home
        check_home_shape(home, len(self.layers), self.num_experts, self.topology)
        own = self._own_weights(home)
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
            self._publish(self._cache, own)
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
        dropped, self._dropped = self._dropped, 0
        first = not self._speed_is_measured
        self._speed = feed_back(self._speed, measured, first, dropped > 0)
        self._speed_is_measured |= any(one != UNMEASURED for one in measured)
        self._paths = MicroStepPaths(self.topology, self._speed, self.layout.payload_bytes)

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

    def _send_home(self, copies: Sequence[GradientCopy]) -> None:
        """Post gradients, as many at a time as every home has buffers for."""
        batch: list[GradientCopy] = []
        for copy in copies:
            if self._returning[copy.home] == self._gradient_buffers:
                self._post_gradients(batch)
                batch = []
                self.collect_gradients()
            self._returning[copy.home] += 1
            batch.append(copy)
        self._post_gradients(batch)

    def _post_gradients(self, copies: Sequence[GradientCopy]) -> None:
        if not copies:
            return
        if self._peer is None:
            raise TransferError("replica gradients cannot return without a peer group")
        buffers = self._inbox.expect([copy for copy in copies if copy.home == self.rank])
        for copy in copies:
            if copy.rank == self.rank:
                self._pool.hold_gradients(copy.slot)
        self._peer.post_gradients(copies, buffers, self.generation)

    def _own_weights(self, home: NDArray[np.int32]) -> dict[tuple[int, int], Mapping[str, Tensor]]:
        """Parameters by (layer, expert) of the experts whose home is this rank, checked."""
        own: dict[tuple[int, int], Mapping[str, Tensor]] = {}
        for row, layer in enumerate(self.layers):
            for expert in np.flatnonzero(home[row] == self.rank).tolist():
                own[layer, expert] = self._home_weights(layer, expert)
                self.layout.check(own[layer, expert])
        return own

    def _publish(
        self, cache: HostExpertCache, own: Mapping[tuple[int, int], Mapping[str, Tensor]]
    ) -> None:
        """Write own experts once nobody reads the old ones; return once all are written."""
        per_node = self.topology.ranks_per_node
        local_rank = self.rank % per_node
        on_node = self._ledger.home // per_node == self.topology.node_of(self.rank)
        cache.announce(local_rank, 2 * self.generation)
        cache.wait_for_all(2 * self.generation, self._wait_seconds)
        cache.serve([np.flatnonzero(row).tolist() for row in on_node])
        for (layer, expert), tensors in own.items():
            checksum = self.layout.checksum(tensors) if self._checksums else 0
            cache.write(layer, expert, tensors, self.generation, checksum)
        cache.announce(local_rank, 2 * self.generation + 1)
        cache.wait_for_all(2 * self.generation + 1, self._wait_seconds)


def _nowhere(returned: Sequence[ReturnedGradient]) -> None:
    raise TransferError(f"{len(returned)} gradients came home, but nobody takes them")
