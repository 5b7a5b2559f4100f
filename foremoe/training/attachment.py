"""Brings up everything one rank needs: groups, host cache, slots, engine, client, session."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.optim import Optimizer

from foremoe.client.rank import RankClient, RankRegistration
from foremoe.errors import ConflictError, ExhaustedError, InvalidInputError, UnavailableError
from foremoe.planner.problem import Topology
from foremoe.rpc.timeline import MAX_SPANS, TIMELINE_RANKS
from foremoe.timeline.recorder import CAPACITY, SpanRecorder
from foremoe.training.expert_state import check_optimizers
from foremoe.training.gradient_sums import GradientSums
from foremoe.training.home_experts import HomeExperts
from foremoe.training.home_mover import HomeMover
from foremoe.training.home_moves import STAGING_BYTES
from foremoe.training.layout import GroupLayout
from foremoe.training.session import RankSession
from foremoe.transfer.engine import TransferEngine
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.torch_wire import new_nccl_group
from foremoe.transfer.transport import cuda_device

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    """How a rank joins ForeMoE.

    address: the node's daemon (``unix:PATH`` or ``HOST:PORT``); None computes without balancing.
    ep_group: a name the ranks of this EP group share, and no other group does.
    spare_slots: replicas this rank can hold per layer.
    ranks_per_node: 0 takes LOCAL_WORLD_SIZE if set, else all ranks of the group.
    cache_directory: a tmpfs for the node's host cache; None leaves only the peer path.
    cache_limit_bytes: most bytes of that cache. limit_bytes: most bytes of this rank's slots and
    returning gradients; too few for slots in every layer, and the layers share them. None is no
    limit.
    plan_wait_seconds: how long a micro-step may wait for its plan before it runs without.
    wait_seconds: how long a rank may wait for another one's copies before it raises; more than the
    ranks ever drift apart between two collectives. verify_copies: compare checksums before every
    use of a replica; slow, for finding faults.
    move_staging_bytes: most memory taken while homes move.
    timeline: a folder, the same on all ranks; when the session closes, this rank writes there what
    ran when, the newest spans of it, for ``foremoe report``. None records the first spans of every
    stage only, for the daemon's report.
    untested_cuda: take weights on CUDA devices too; no GPU has run any of it yet.
    """

    address: str | None
    ep_group: str = "ep0"
    spare_slots: int = 1
    ranks_per_node: int = 0
    cache_directory: Path | None = Path("/dev/shm")
    cache_limit_bytes: int | None = None
    limit_bytes: int | None = None
    plan_wait_seconds: float = 1.0
    wait_seconds: float = 300.0
    verify_copies: bool = False
    move_staging_bytes: int = STAGING_BYTES
    timeline: Path | None = None
    untested_cuda: bool = False


def open_session(
    homes: Sequence[HomeExperts],
    group: dist.ProcessGroup,
    options: AttachOptions,
    optimizers: Sequence[Optimizer] = (),
) -> RankSession:
    """Collective over ``group``. ``homes`` holds this rank's experts, layers ascending.

    optimizers: all that hold state of the experts, on all ranks or on none. With them homes may
    move: at the beginning of a stage to where the daemon's plans expect them, and by
    ``session.move_homes``. Without, homes stay.

    Raises InvalidInputError for weights on a device that is not supported (``untested_cuda``), or
    that are not among the optimizers' parameters; ConflictError on every rank when only some have
    optimizers or the daemon refuses one of them.
    """
    device = _device(homes, options)
    if optimizers:
        for one in homes:
            check_optimizers(one.layer, one.parameters, optimizers)
    # Objects and figures of the CPU go over gloo; the EP group's backend may take none.
    control_group, peer_group = _gloo_like(group), _gloo_like(group)
    layout, in_order = _layout(homes, control_group, options, moves_homes=bool(optimizers))
    spans = _recorder(layout, options)
    client = _client(layout, control_group, options, spans, moves_homes=bool(optimizers))
    slab = SlabLayout.from_shapes(homes[0].shapes(), homes[0].dtype)
    by_layer = {home.layer: home for home in homes}
    engine = TransferEngine(
        rank=layout.rank,
        topology=layout.topology,
        layers=layout.layers,
        num_experts=layout.num_experts,
        layout=slab,
        spare_slots=options.spare_slots,
        training=True,
        cache=_open_cache(layout, slab, control_group, options),
        peer_group=peer_group,
        home_weights=lambda layer, expert: by_layer[layer].weights(expert),
        add_gradients=GradientSums(by_layer),
        limit_bytes=options.limit_bytes,
        wait_seconds=options.wait_seconds,
        home=layout.home,
        checksums=options.verify_copies,
        device=device,
        device_group=_nccl_like(group) if device.type == "cuda" else None,
        spans=spans,
    )
    mover = None
    if optimizers:
        staging_bytes, wait_seconds = options.move_staging_bytes, options.wait_seconds
        mover = HomeMover(
            homes,
            optimizers,
            layout.home,
            in_order,
            control_group,
            staging_bytes,
            wait_seconds,
        )
    return RankSession(
        layout,
        homes,
        group,
        control_group,
        engine,
        client,
        plan_wait_seconds=options.plan_wait_seconds,
        mover=mover,
    )


def _device(homes: Sequence[HomeExperts], options: AttachOptions) -> torch.device:
    """Where the weights are. Raises InvalidInputError where the rest could not follow."""
    devices = {one.device for one in homes}
    if len(devices) != 1:
        raise InvalidInputError(
            "attach: needs at least one MoE layer, and all experts of a rank on one device, not on "
            f"{sorted(map(str, devices))}"
        )
    device = devices.pop()
    if device.type == "cuda" and options.untested_cuda:
        if device != (current := cuda_device()):
            raise InvalidInputError(
                f"attach: the weights are on {device} but {current} is current; "
                f"call torch.cuda.set_device({device.index}) first"
            )
        log.warning("untested: the weights are on %s; no GPU has run this code yet", device)
    elif device.type != "cpu":
        raise InvalidInputError(
            f"attach: the weights are on {device}, and no GPU has run this code yet; put them on "
            "the CPU, or try CUDA with AttachOptions(untested_cuda=True)"
        )
    return device


def _layout(
    homes: Sequence[HomeExperts],
    group: dist.ProcessGroup,
    options: AttachOptions,
    moves_homes: bool,
) -> tuple[GroupLayout, NDArray[np.int32]]:
    """How the group shares the experts, and int32 ``[L, E]`` how it does by the model's order."""
    rank, ranks = dist.get_rank(group), group.size()
    per_node = options.ranks_per_node or int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    moving: list[bool] = [False] * ranks
    dist.all_gather_object(moving, moves_homes, group=group)
    if any(moving) and not all(moving):
        raise ConflictError("attach: give optimizers on all ranks of the EP group or on none")
    home = _shared([one.experts for one in homes], group)
    in_order = _shared([one.positions for one in homes], group)
    layout = GroupLayout(
        rank,
        Topology(ranks, min(per_node, ranks)),
        tuple(expert.layer for expert in homes),
        home,
        options.spare_slots,
    )
    return layout, in_order


def _shared(own: Sequence[Sequence[int]], group: dist.ProcessGroup) -> NDArray[np.int32]:
    """The rank of each expert, int32 ``[L, E]``, from every rank's ``own`` experts by layer."""
    owned: list[Sequence[Sequence[int]]] = [[]] * group.size()
    dist.all_gather_object(owned, own, group=group)
    home = np.full((len(own), sum(len(layers[0]) for layers in owned)), -1, np.int32)
    for owner, layers in enumerate(owned):
        for position, experts in enumerate(layers):
            home[position, list(experts)] = owner
    return home


def _gloo_like(group: dist.ProcessGroup) -> dist.ProcessGroup:
    created = dist.new_group(
        dist.get_process_group_ranks(group), backend="gloo", use_local_synchronization=True
    )
    assert isinstance(created, dist.ProcessGroup)
    return created


def _nccl_like(group: dist.ProcessGroup) -> dist.ProcessGroup | None:
    if not dist.is_nccl_available():
        return None
    return new_nccl_group(dist.get_process_group_ranks(group))


def _recorder(layout: GroupLayout, options: AttachOptions) -> SpanRecorder:
    """Of all, if it is asked for; and for a daemon of what its report shows."""
    told = options.address is not None and layout.rank < TIMELINE_RANKS
    sampled = MAX_SPANS if told else 0
    if options.timeline is None:
        return SpanRecorder(ep_group=options.ep_group, sampled=sampled)
    named = re.sub(r"[^\w.-]", "_", options.ep_group)
    path = options.timeline / f"{named}-rank-{layout.rank}.json"
    return SpanRecorder(CAPACITY, path, options.ep_group, f"rank {layout.rank}", sampled)


def _client(
    layout: GroupLayout,
    group: dist.ProcessGroup,
    options: AttachOptions,
    spans: SpanRecorder,
    moves_homes: bool,
) -> RankClient | None:
    """Register; a rank that is refused takes the others along, or they would wait for it."""
    if options.address is None:
        return None
    registration = RankRegistration(
        ep_group=options.ep_group,
        rank=layout.rank,
        ranks=layout.topology.ranks,
        ranks_per_node=layout.topology.ranks_per_node,
        spare_slots=options.spare_slots,
        num_experts=layout.num_experts,
        layers=layout.layers,
        moves_homes=moves_homes,
        home=layout.home,
    )
    client, refusal = None, ""
    try:
        client = RankClient(options.address, registration, spans=spans)
        client.start()
    except (ConflictError, InvalidInputError) as error:
        refusal = f"rank {layout.rank}: {error}"
    refusals: list[str] = [""] * layout.topology.ranks
    dist.all_gather_object(refusals, refusal, group=group)
    if any(refusals):
        if client is not None:
            client.close()
        raise ConflictError("; ".join(sorted(set(filter(None, refusals)))))
    return client


def _open_cache(
    layout: GroupLayout, slab: SlabLayout, group: dist.ProcessGroup, options: AttachOptions
) -> HostExpertCache | None:
    """The node's cache: its first rank creates the file, the others attach, then the name goes.

    Where it cannot be made, every rank goes on with the peer path only.
    """
    per_node = layout.topology.ranks_per_node
    capacity = layout.num_experts // layout.topology.nodes
    leader = layout.rank - layout.rank % per_node
    cache, found = None, ""
    if options.cache_directory is not None and layout.rank == leader:
        try:
            cache = HostExpertCache.create(
                options.cache_directory,
                layout.layers,
                capacity,
                slab,
                local_ranks=per_node,
                limit_bytes=options.cache_limit_bytes,
            )
            found = str(cache.path)
        except (ExhaustedError, UnavailableError) as error:
            log.warning("degraded: no host cache, peer path only: %s", error)
    paths: list[str] = [""] * layout.topology.ranks
    dist.all_gather_object(paths, found, group=group)
    if not all(paths[rank] for rank in range(0, layout.topology.ranks, per_node)):
        if cache is not None:
            cache.unlink()
            cache.close()
        return None
    if cache is None:
        try:
            cache = HostExpertCache.attach(paths[leader], layout.layers, capacity, slab)
        except (InvalidInputError, UnavailableError) as error:
            log.warning("degraded: no host cache, peer path only: %s", error)
    attached: list[bool] = [False] * layout.topology.ranks
    dist.all_gather_object(attached, cache is not None, group=group)
    if cache is not None and layout.rank == leader:
        cache.unlink()
    if cache is not None and not all(attached):
        cache.close()
        return None
    return cache
