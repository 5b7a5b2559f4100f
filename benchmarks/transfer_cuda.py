"""All that a GPU has to show of transfer, in one call: probes, the host path, the peer protocol.

    python -m benchmarks.transfer_cuda [--pairs 12] [--expert-mib 32] [--json FILE] [--trace FILE]

Without a CUDA device it says why and ends with 0. The host path is that of one process, which
writes the cache itself; the peer path, two processes on this device (``transfer_cuda_peer.py``).
Time of the host path is the device's, between events. bandwidth: bytes a second of a plain pinned
``copy_`` / of the host path. slow-down: matrix products beside endless copies / alone. overlap: of
the copies' time in the profiler's trace, the part during which a product ran.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import transfer_cuda_peer
from benchmarks.pairing import Ratio, ratio, turns
from benchmarks.record import Record
from foremoe.errors import TransferError
from foremoe.transfer.content import Content
from foremoe.transfer.copies import Copy
from foremoe.transfer.copies import Path as CopyPath
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.host_stream import HostStreamTransport
from foremoe.transfer.probes import CUDA
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.slots import SlotPool
from foremoe.transfer.statistics import StatisticsRecorder
from foremoe.transfer.ticket import mark
from foremoe.transfer.transport import ProbeSite, cuda_device

EXPERTS, WAIT_SECONDS = 16, 60.0
PRODUCTS, SIDE = 40, 4096
COPY_ROUNDS = 5  # last longer than the products
Interval = tuple[float, float]  # began and ended, in microseconds


class HostPath:
    """All experts of a cache into as many slots, by the transport and plainly."""

    def __init__(self, directory: Path, expert_bytes: int, device: torch.device) -> None:
        self.device = device
        self.layout = SlabLayout.from_shapes({"bytes": (expert_bytes,)}, torch.uint8)
        self.cache = HostExpertCache.create(directory, [0], EXPERTS, self.layout, local_ranks=1)
        self.cache.unlink()
        for expert in range(EXPERTS):
            weights = torch.randint(0, 256, (expert_bytes,), dtype=torch.uint8)
            self.cache.write(0, expert, {"bytes": weights}, generation=1)
        self.pool = SlotPool(EXPERTS, self.layout, False, checksums=False, device=device)
        statistics = StatisticsRecorder(1)
        self.transport = HostStreamTransport(0, self.cache, self.pool, statistics, WAIT_SECONDS)
        self.pinned = torch.empty(EXPERTS, self.layout.nbytes, dtype=torch.uint8, pin_memory=True)
        self.plain_slots = torch.empty_like(self.pinned, device=device)
        self.plain_stream = torch.cuda.Stream(device)

    def move(self) -> None:
        """Enqueue all copies; the current stream waits for them."""
        copies = [Copy(0, expert, 1, 0, expert, CopyPath.HOST) for expert in range(EXPERTS)]
        for copy in copies:
            self.pool.expect(copy.slot)
        self.transport.post(copies, generation=1)
        slots = range(EXPERTS)
        self.pool.wait_settled(slots, WAIT_SECONDS)
        self.pool.use([], {slot: Content(0, slot, 1) for slot in slots})
        for slot in slots:
            self.pool.release(slot, owing=False)

    def move_plainly(self) -> None:
        """The same bytes from memory that torch pinned."""
        with torch.cuda.stream(self.plain_stream):
            for slot, slab in zip(self.plain_slots, self.pinned, strict=True):
                slot.copy_(slab, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self.plain_stream)

    def close(self) -> None:
        self.transport.close(WAIT_SECONDS)
        self.cache.close()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds on the device from the first to the last of what ``work`` enqueues."""
    torch.cuda.synchronize(device)
    begun = mark(device, timed=True)
    work()
    ended = mark(device, timed=True)
    ended.settle(WAIT_SECONDS, "a measurement")
    return ended.seconds_since(begun)


def bandwidth(path: HostPath, pairs: int) -> tuple[Ratio, float]:
    """Seconds of a plain copy / of the host path, and the path's gigabytes a second."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for index, ours in enumerate(turns(pairs + 1)):
        took = timed(path.device, path.move if ours else path.move_plainly)
        if index >= 2:
            seconds[ours].append(took)
    moved = EXPERTS * path.layout.payload_bytes
    fastest = moved / min(seconds[True]) / 1e9
    return ratio(seconds[False], seconds[True]), fastest


def slow_down(path: HostPath, pairs: int) -> Ratio:
    """Seconds of matrix products beside copies / alone."""
    product = _products(path.device)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for index, beside in enumerate(turns(pairs + 1)):
        torch.cuda.synchronize(path.device)
        if beside:
            for _ in range(COPY_ROUNDS):
                _enqueue_copies(path)
        begun = mark(path.device, timed=True)
        product()
        ended = mark(path.device, timed=True)
        ended.settle(WAIT_SECONDS, "matrix products")
        torch.cuda.synchronize(path.device)
        if index >= 2:
            seconds[beside].append(ended.seconds_since(begun))
    return ratio(seconds[True], seconds[False])


def overlap(path: HostPath, trace: Path) -> float:
    """Share of the copies' time during which a product ran; writes a Chrome trace."""
    product = _products(path.device)
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiler:
        for _ in range(COPY_ROUNDS):
            product()
        _enqueue_copies(path)
        torch.cuda.synchronize(path.device)
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    return share_covered(_intervals(events, "gpu_memcpy"), _intervals(events, "kernel"))


def share_covered(inner: Sequence[Interval], outer: Sequence[Interval]) -> float:
    """Part of the ``inner`` intervals' length that lies in one of ``outer``, which are disjoint."""
    length = sum(end - begin for begin, end in inner)
    both = sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in inner
        for other_begin, other_end in outer
    )
    return both / length if length else 0.0


def _intervals(events: Sequence[dict[str, Any]], category: str) -> list[Interval]:
    found = [event for event in events if event.get("cat") == category and "dur" in event]
    return [(float(event["ts"]), float(event["ts"]) + float(event["dur"])) for event in found]


def _enqueue_copies(path: HostPath) -> None:
    """Copies on the path's stream that compute does not wait for."""
    with torch.cuda.stream(path.transport.stream):
        for slot in range(EXPERTS):
            path.pool.weights(slot).copy_(path.cache.slab(0, slot), non_blocking=True)


def _products(device: torch.device) -> Callable[[], None]:
    left = torch.randn(SIDE, SIDE, device=device, dtype=torch.bfloat16)
    out: Tensor = torch.empty_like(left)

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, left, out=out)

    run()
    return run


def probe_all(directory: Path) -> list[dict[str, Any]]:
    """Say which transports of CUDA work here, and why others do not."""
    probes = [transport.probe(ProbeSite(directory)) for transport in CUDA]
    for probe in probes:
        print(f"{probe.name}: {'works' if probe.works else 'does not work'}, {probe.reason}")
    return [asdict(probe) for probe in probes]


def between_processes(device: torch.device, expert_bytes: int) -> list[dict[str, Any]]:
    """Say what two processes on the device found in each other's experts."""
    peers = transfer_cuda_peer.measure(device, expert_bytes)
    for one in peers:
        print(
            f"two processes, rank {one['rank']}, {one['transport']}: {one['wrong_bytes']} wrong "
            f"bytes, {one['gigabytes_per_second']:.1f} GB/s (a plain copy on the device: "
            f"{one['plain_gigabytes_per_second']:.1f})"
        )
    return peers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12, help="pairs per figure")
    parser.add_argument("--expert-mib", type=float, default=32.0, help="size of one expert")
    parser.add_argument("--cache-directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--json", type=Path, help="where to write the record")
    parser.add_argument("--trace", type=Path, help="where to keep the Chrome trace")
    arguments = parser.parse_args()
    try:
        device = cuda_device()
    except TransferError as error:
        print(f"skipped: {error}")
        return
    record = Record("transfer_cuda", {key: str(value) for key, value in vars(arguments).items()})
    probes = probe_all(arguments.cache_directory)
    path = HostPath(arguments.cache_directory, int(arguments.expert_mib * 2**20), device)
    speeds, gigabytes = bandwidth(path, arguments.pairs)
    slower = slow_down(path, arguments.pairs)
    with tempfile.TemporaryDirectory() as folder:
        covered = overlap(path, arguments.trace or Path(folder) / "trace.json")
    pinned = path.transport.pinned
    path.close()
    print(f"{torch.cuda.get_device_name(device)}, host cache {'' if pinned else 'NOT '}pinned")
    print(f"plain pinned copy / host path: {speeds} at {gigabytes:.1f} GB/s (aim: 0.90)")
    print(f"products beside copies / alone: {slower}")
    print(f"share of the copies' time beside a product: {covered:.1%}")
    peers = between_processes(device, int(arguments.expert_mib * 2**20))
    if arguments.json:
        figures = {
            "device": torch.cuda.get_device_name(device),
            "pinned": pinned,
            "plain_over_host_path": asdict(speeds),
            "gigabytes_per_second": gigabytes,
            "products_beside_copies_over_alone": asdict(slower),
            "copies_beside_products": covered,
            "probes": probes,
            "two_processes": peers,
        }
        record.write(arguments.json, figures)


if __name__ == "__main__":
    main()
