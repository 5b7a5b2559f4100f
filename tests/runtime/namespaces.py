"""Two machines on this one: network namespaces joined by cables of their own."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

CONTROL = "control"  # the cable that daemons talk over
DATA = "data"  # the cable that ranks talk over
_NETWORKS = {CONTROL: "10.213.7", DATA: "10.213.8"}
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Machines:
    """Two namespaces; each has both cables, as interfaces of the cables' names."""

    names: tuple[str, str]

    def address(self, machine: int, cable: str) -> str:
        return f"{_NETWORKS[cable]}.{machine + 1}"

    def prefix(self, machine: int) -> tuple[str, ...]:
        """What runs a command on a machine."""
        return ("ip", "netns", "exec", self.names[machine])

    def enter(self, machine: int) -> None:
        """Move this process there; only while it has one thread."""
        with open(f"/run/netns/{self.names[machine]}") as namespace:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.names[machine]}")

    def cut(self, cable: str) -> None:
        _ip("-n", self.names[1], "link", "set", cable, "down")

    def mend(self, cable: str) -> None:
        _ip("-n", self.names[1], "link", "set", cable, "up")

    def slow_down(self, cable: str, rate: str) -> None:
        """To ``rate``, 1mbit say, in both directions."""
        for name in self.names:
            subprocess.run(
                ["tc", "-n", name, "qdisc", "replace", "dev", cable, "root", "tbf",
                 "rate", rate, "burst", "8kb", "latency", "400ms"],
                check=True,
                capture_output=True,
            )  # fmt: skip


@contextmanager
def two_machines() -> Iterator[Machines]:
    """Make them; they are gone at the end."""
    machines = Machines((f"foremoe-{os.getpid()}-a", f"foremoe-{os.getpid()}-b"))
    with ExitStack() as undo:
        for name in machines.names:
            _ip("netns", "add", name)
            undo.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for cable in _NETWORKS:
            first, second = machines.names
            _ip("link", "add", cable, "netns", first, "type", "veth",
                "peer", "name", cable, "netns", second)  # fmt: skip
            for machine, name in enumerate(machines.names):
                _ip("-n", name, "address", "add", f"{machines.address(machine, cable)}/24",
                    "dev", cable)  # fmt: skip
                _ip("-n", name, "link", "set", cable, "up")
        yield machines


def why_not() -> str:
    """Why there can be no machines here; empty when there can."""
    for command in ("ip", "tc"):
        if shutil.which(command) is None:
            return f"needs the command {command}"
    try:
        with two_machines():
            return ""
    except subprocess.CalledProcessError as error:
        return f"cannot make network namespaces: {error.stderr.decode().strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
