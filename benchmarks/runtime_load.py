"""The load of one large step on a daemon: who its clients are and what they send.

64 ranks of one EP group follow their plans, 8 controllers upload 512 sequences of 16,384 tokens,
48 layers, top-8 of 128 experts; a pinger asks for the daemon's health all the while, and a process
without any of our code for an echo, which tells what the machine alone takes.
"""

import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from numpy.typing import NDArray

from foremoe.client import ControllerClient, MicroStepSchedule, RankRegistration
from foremoe.rpc.registration import encode_registration
from foremoe.rpc.v1.rank_pb2 import StreamPlansRequest
from foremoe.rpc.v1.rank_pb2_grpc import RankServiceStub

RANKS, LAYERS, EXPERTS, TOP_K, TOKENS = 64, 48, 128, 8, 16_384
CONTROLLERS, SEQUENCES = 8, 512
MICRO_STEPS = SEQUENCES // RANKS
GROUP = RankRegistration("load", 0, RANKS, 8, 2, EXPERTS, tuple(range(LAYERS)))
SCHEDULE = [
    MicroStepSchedule(0, [[f"s{index * RANKS + rank}"] for rank in range(RANKS)])
    for index in range(MICRO_STEPS)
]
SEQUENCE_BYTES = {"ids": TOKENS * LAYERS * TOP_K, "histograms": LAYERS * EXPERTS * 4}
PROCESSES = 4  # of the controllers, and of the ranks
PING_SECONDS = 0.003
NICENESS = 10  # of the controllers: on their own machines they would not take the daemon's cores
COPY_BYTES = 1 << 20

context = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Upload:
    """One step's sequences from all controllers."""

    kind: str
    sequences: int
    began: float
    ended: float

    @property
    def bytes_per_second(self) -> float:
        return self.sequences * SEQUENCE_BYTES[self.kind] / (self.ended - self.began)


def histograms(sequences: int) -> NDArray[np.uint32]:
    """``[sequences, L, E]``: heat of its own in every layer, and around it in every sequence."""
    generator = np.random.default_rng(0)
    heat = generator.dirichlet(np.full(EXPERTS, 2.0), LAYERS)
    counts = np.empty((sequences, LAYERS, EXPERTS), np.uint32)
    for sequence in range(sequences):
        noise = heat * generator.gamma(4.0, size=heat.shape)
        counts[sequence] = generator.multinomial(
            TOKENS * TOP_K, noise / noise.sum(axis=1, keepdims=True)
        )
    return counts


class Controllers:
    """Eight clients in a few processes; each uploads its share of a step."""

    def __init__(self, address: str) -> None:
        share = CONTROLLERS // PROCESSES
        self._links = [
            start(_control, address, range(index * share, (index + 1) * share))
            for index in range(PROCESSES)
        ]

    def upload(self, step: int, kind: str, sequences: int) -> Upload:
        """``sequences`` of a step in all; returns when all are committed, or one is refused."""
        for link in self._links:
            link.send((step, kind, sequences // CONTROLLERS))
        answers = [link.recv() for link in self._links]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        began, ended = zip(*answers, strict=True)
        return Upload(kind, sequences, min(began), max(ended))

    def close(self) -> None:
        for link in self._links:
            link.send(None)


def _control(link: Connection, address: str, controllers: range) -> None:
    os.nice(NICENESS)
    generator = np.random.default_rng(controllers[0])
    ids = generator.integers(0, EXPERTS, (TOKENS + SEQUENCES, LAYERS, TOP_K), np.uint8)
    counts = histograms(16)

    def send(client: ControllerClient, number: int, step: int, kind: str, sequences: int) -> None:
        as_ids = kind == "ids"
        layers = range(LAYERS)
        with client.foresight_stream(step, layers, EXPERTS, TOP_K, send_ids=as_ids) as stream:
            for index in range(number * sequences, (number + 1) * sequences):
                if as_ids:  # another sequence every time, without a copy
                    begin = index % SEQUENCES
                    stream.add(f"s{index}", expert_ids=ids[begin : begin + TOKENS])
                else:
                    stream.add(f"s{index}", histogram=counts[index % len(counts)])

    clients = {number: ControllerClient(address, timeout_seconds=120) for number in controllers}
    with ThreadPoolExecutor(len(controllers)) as pool:
        link.send("ready")
        while (task := link.recv()) is not None:
            began = time.monotonic()
            sent = [pool.submit(send, client, number, *task) for number, client in clients.items()]
            errors = [error for one in sent if (error := one.exception()) is not None]
            link.send(errors[0] if errors else (began, time.monotonic()))
    for client in clients.values():
        client.close()


class Pinger:
    """Latencies of a health check and of a plain echo, in turns, with the times of asking."""

    def __init__(self, address: str, folder: Path) -> None:
        echo = str(folder / "echo")
        self._echo = start(_answer_echoes, echo)
        self._link = start(_ping, address, echo)

    def stop(self) -> NDArray[np.float64]:
        """``[pings, 3]``: when, seconds of the health check, seconds of the echo."""
        self._link.send(None)
        found: NDArray[np.float64] = self._link.recv()
        self._echo.send(None)
        return found


def _ping(link: Connection, address: str, echo: str) -> None:
    found: list[tuple[float, float, float]] = []
    with (
        grpc.insecure_channel(f"unix:{address}") as channel,
        socket.socket(socket.AF_UNIX) as plain,
    ):
        plain.connect(echo)
        stub, request = HealthStub(channel), HealthCheckRequest()
        stub.Check(request)
        link.send("ready")
        while not link.poll(PING_SECONDS):
            began = time.monotonic()
            stub.Check(request)
            between = time.monotonic()
            plain.sendall(b"ping")
            plain.recv(4)
            found.append((began, between - began, time.monotonic() - between))
    link.send(np.array(found))


def _answer_echoes(link: Connection, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        link.send("ready")
        with listener.accept()[0] as connection:
            while data := connection.recv(64):
                connection.sendall(data)
    os.unlink(path)


def plain_copy(folder: Path, total_bytes: int) -> float:
    """Bytes per second of as many plain unix sockets as controllers, one process at each end."""
    path = str(folder / "copy")
    sink = start(_swallow, path)
    source = start(_pour, path, total_bytes // CONTROLLERS)
    source.recv()
    seconds: float = sink.recv()
    os.unlink(path)
    return total_bytes // CONTROLLERS * CONTROLLERS / seconds


def _swallow(link: Connection, path: str) -> None:
    def read(connection: socket.socket) -> None:
        buffer = bytearray(COPY_BYTES)
        with connection:
            while connection.recv_into(buffer):
                pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(CONTROLLERS)
        link.send("ready")
        connections = [listener.accept()[0] for _ in range(CONTROLLERS)]
    began = time.monotonic()
    _for_all_at_once(connections, read)
    link.send(time.monotonic() - began)


def _pour(link: Connection, path: str, each_bytes: int) -> None:
    data = bytes(COPY_BYTES)

    def write(connection: socket.socket) -> None:
        with connection:
            for _ in range(each_bytes // COPY_BYTES):
                connection.sendall(data)
            connection.sendall(data[: each_bytes % COPY_BYTES])

    connections = [socket.socket(socket.AF_UNIX) for _ in range(CONTROLLERS)]
    for connection in connections:
        connection.connect(path)
    link.send("ready")
    _for_all_at_once(connections, write)
    link.send("done")


def _for_all_at_once(
    connections: list[socket.socket], use: Callable[[socket.socket], None]
) -> None:
    threads = [threading.Thread(target=use, args=(each,)) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def start(function: Callable[..., None], *arguments: Any) -> Connection:
    """Run ``function(link, *arguments)`` in a process; returns our end when it is ready."""
    ours, theirs = context.Pipe()
    context.Process(target=function, args=(theirs, *arguments), daemon=True).start()
    theirs.close()
    ours.recv()
    return ours


@contextmanager
def frozen_reader(address: str) -> Iterator[None]:
    """A plan stream that nobody reads."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        stub = RankServiceStub(channel)
        stub.RegisterRank(encode_registration(GROUP))
        call = stub.StreamPlans(StreamPlansRequest(ep_group=GROUP.ep_group, rank=0))
        try:
            yield
        finally:
            call.cancel()
