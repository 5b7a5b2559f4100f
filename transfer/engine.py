"""The transfer engine of one rank: replicas there before the layer needs them, gradients home."""

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroup

from foremoe.errors import NotReadyError
from foremoe.planner.homes import contiguous_homes
from foremoe.planner.problem import Topology
from foremoe.transfer.arguments import check_agreement, check_home_shape, check_paths, check_sizes
from foremoe.transfer.gradients import GradientCopy, GradientInbox, ReturnedGradient
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.ledger import Ledger, Promise
from foremoe.transfer.paths import MicroStepPaths, PathSpeed
from foremoe.transfer.peer import GlooPeerTransport, HomeWeights
from foremoe.transfer.replica import Replica
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import Content, SlotKey, SlotPool
from foremoe.transfer.statistics import StatisticsRecorder, TransferStatistics


class TransferEngine:
    """Driven by the training thread at hook points that all ranks pass in the same order.

    For each layer and micro-step: ``promise`` (ahead of time, never blocks), ``acquire``, compute,
    then ``release`` (forward only) or ``return_gradients``. After an optimizer step
    ``weights_changed``. Worker threads copy; the training thread waits only in ``acquire``,
    ``collect_gradients``, ``abandon`` and ``weights_changed``, each with a deadline.
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
        limit_bytes: int | None = None,
        wait_seconds: float = 60.0,
        speed: PathSpeed | None = None,
        home: NDArray[np.int32] | None = None,
    ) -> None:
        """Construct on all ranks of the EP group together.

        layers: global layer ids. home_weights(layer, expert): the parameters of an expert whose
        home is this rank, in the layout's shapes and dtype. limit_bytes: for slots and returning
        gradients. wait_seconds: how long any wait lasts at most; one send or receive may last half
        of it. home: int32 ``[L, E]``, contiguous homes by default.

        Raises ExhaustedError when the slots exceed ``limit_bytes``, InvalidInputError on arguments
        that cannot work, ConflictError when the ranks' arguments differ.
        """
        home = contiguous_homes(len(layers), num_experts, topology.ranks) if home is None else home
        speed = speed or PathSpeed()
        speed = PathSpeed(speed.host if cache else 0.0, speed.peer if peer_group else 0.0)
        if spare_slots > 0 and topology.ranks > 1:
            check_paths(topology, speed, training)
        check_sizes(rank, topology, layers, num_experts, home, cache, layout, peer_group)
        self.rank = rank
        self.topology = topology
        self.layers = tuple(layers)
        self.num_experts = num_experts
        self.layout = layout
        self.spare_slots = spare_slots
        self.training = training
        self.generation = 0
        self._wait_seconds = wait_seconds
        self._speed = speed
        self._cache = cache
        self._home_weights = home_weights
        self._ledger = Ledger(layers, home, topology.ranks, spare_slots)
        self._paths = MicroStepPaths(topology, speed)
        self._statistics = StatisticsRecorder(len(layers))
        self._pool = SlotPool(layers, spare_slots, layout, training, limit_bytes)
        left = None if limit_bytes is None else limit_bytes - self._pool.nbytes
        self._inbox = GradientInbox(layout.gradient_layout(), left)
        if peer_group is not None:
            everyone_knows = (topology, self.layers, num_experts, layout, spare_slots, training)
            check_agreement((everyone_knows, speed, home.tobytes()), peer_group, wait_seconds)
        # A path gives up at half time, so that another one can serve before the waiter gives up.
        path_seconds = wait_seconds / 2
        self._host = (
            SharedMemoryTransport(rank, cache, self._pool, self._statistics, path_seconds)
            if cache
            else None
        )
        self._peer = (
            GlooPeerTransport(
                rank,
                topology,
                peer_group,
                layout,
                home_weights,
                self._pool,
                self._inbox,
                self._host,
                self._statistics,
                path_seconds,
            )
            if peer_group is not None and topology.ranks > 1
            else None
        )

    def promise(self, layer: int, home: NDArray[np.int32], wanted: NDArray[np.int32]) -> None:
        """Start bringing in the layer's replicas for its next micro-step; never blocks.

        home: int32 ``[E]``, the homes the plan was made for. wanted: int32 ``[P, R]``, the expert
        each rank's slots must hold, -1 for none. Every rank calls this with the same arguments, in
        the same order; for a layer again as soon as its last promise was released or returned.

        Raises InvalidInputError or NotReadyError, with nothing changed.
        """
        promise = self._ledger.open(layer, home, wanted)
        copies = self._paths.choose(layer, promise.fills, home)
        filled = promise.filled_slots_of(self.rank)
        for slot in filled:
            self._pool.expect(SlotKey(layer, slot))
        self._statistics.add_kept(len(promise.slots_of(self.rank)) - len(filled))
        if self._host is not None:
            self._host.post(copies, self.generation)
        if self._peer is not None:
            self._peer.post(copies, self.generation)

    def placement(self, layer: int) -> NDArray[np.int32]:
        """The expert in each slot of the group under the layer's open promise, -1: ``[P, R]``."""
        return self._ledger.promise(layer).placement

    def acquire(self, layer: int, with_gradients: bool = True) -> list[Replica]:
        """Wait for this rank's replicas of the layer and take them into use, by slot.

        with_gradients: False in forward-only stages, which saves zeroing the gradients.

        Raises NotReadyError when nothing was promised, TransferError when a replica did not come,
        StaleGenerationError when its source held other weights.
        """
        promise = self._ledger.promise(layer)
        if promise.acquired:
            raise NotReadyError(f"layer {layer}: its replicas are acquired already")
        promised = promise.slots_of(self.rank)
        filled = [SlotKey(layer, slot) for slot in promise.filled_slots_of(self.rank)]
        kept = [key for slot, _ in promised if (key := SlotKey(layer, slot)) not in filled]
        started = time.monotonic()
        self._pool.wait_settled(filled, self._wait_seconds)
        self._pool.wait_free(kept, self._wait_seconds)
        self._statistics.add_exposed(self._ledger.row(layer), time.monotonic() - started)
        contents = {SlotKey(layer, s): Content(e, self.generation) for s, e in promised}
        self._pool.use(kept, contents)
        promise.acquired, promise.with_gradients = True, with_gradients and self.training
        return [
            Replica.in_use(self._pool, key, content.expert, promise.with_gradients)
            for key, content in contents.items()
        ]

    def release(self, layer: int) -> None:
        """The layer's replicas have done their work and have no gradients."""
        promise = self._ledger.acquired(layer)
        for slot, _ in promise.slots_of(self.rank):
            self._pool.release(SlotKey(layer, slot))
        self._ledger.close(layer)

    def return_gradients(self, layer: int) -> None:
        """Send the gradients of the layer's replicas home; never blocks.

        Raises NotReadyError unless they were acquired with gradients, ExhaustedError when the
        gradients under way would exceed the byte limit.
        """
        promise = self._ledger.acquired(layer)
        if not promise.with_gradients:
            raise NotReadyError(f"layer {layer}: its replicas were acquired without gradients")
        copies = self._gradient_copies(promise)
        buffers = self._inbox.expect([copy for copy in copies if copy.home == self.rank])
        for slot, _ in promise.slots_of(self.rank):
            self._pool.hold_gradients(SlotKey(layer, slot))
        if self._peer is not None:
            self._peer.post_gradients(copies, buffers)
        self._ledger.close(layer)

    def collect_gradients(self) -> list[ReturnedGradient]:
        """Wait for all gradients of own experts returned so far; by (layer, expert, rank).

        Their tensors are valid until the next ``return_gradients`` or ``collect_gradients``. Raises
        TransferError when one is lost or late.
        """
        started = time.monotonic()
        returned = self._inbox.collect(self._wait_seconds)
        self._statistics.add_exposed_gradients(time.monotonic() - started)
        return returned

    def abandon(self) -> None:
        """Drop the promises not acquired yet, on all ranks alike; their contents stay useful."""
        for promise in self._ledger.waiting():
            filled = [SlotKey(promise.layer, slot) for slot in promise.filled_slots_of(self.rank)]
            self._pool.wait_settled(filled, self._wait_seconds)
            for key in filled:
                self._pool.abandon(key)
            self._ledger.close(promise.layer)

    def weights_changed(self, home: NDArray[np.int32] | None = None) -> None:
        """Void every replica and publish own experts; on all ranks, after each optimizer step.

        Call it once before the first promise as well. home: int32 ``[L, E]`` when homes moved.

        Raises NotReadyError while replicas are in use, InvalidInputError on invalid homes,
        TransferError when a rank of this node does not follow in time.
        """
        if in_use := self._ledger.in_use():
            raise NotReadyError(
                f"layers {in_use}: replicas are in use; release them before weights change"
            )
        home = self._ledger.home if home is None else home
        check_home_shape(home, len(self.layers), self.num_experts, self.topology)
        own = self._own_weights(home)
        self.abandon()
        self._pool.wait_all_free(self._wait_seconds)
        self._pool.forget_all()
        self._ledger.forget(home)
        self._paths.restart()
        self.generation += 1
        if self._cache is not None:
            self._publish(self._cache, own)

    def statistics(self) -> TransferStatistics:
        """What happened since the last call."""
        return self._statistics.take()

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

    def _gradient_copies(self, promise: Promise) -> list[GradientCopy]:
        """Every replica of the group, by (rank, slot)."""
        home = self._ledger.home_of(promise.layer)
        return [
            GradientCopy(promise.layer, expert, rank, slot, int(home[expert]))
            for rank in range(self.topology.ranks)
            for slot, expert in promise.slots_of(rank)
        ]

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
            cache.write(layer, expert, tensors, self.generation)
        cache.announce(local_rank, 2 * self.generation + 1)
        cache.wait_for_all(2 * self.generation + 1, self._wait_seconds)
