"""One daemon on each of a Ray job's nodes, kept there by node affinity.

    daemons = start_daemons(node_ids)  # the leader is on the first
    ... trainers take SOCKET as their address ...
    stop_daemons(daemons)

Credentials: the FOREMOE_TLS_* and FOREMOE_TOKEN_FILE variables, in the job's runtime_env.
"""

import os
import subprocess
import threading

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SOCKET = f"/tmp/foremoe-{os.getuid()}/runtime.sock"
PORT = 7400


@ray.remote(num_cpus=1, max_restarts=-1)
class NodeDaemon:
    """Holds the process of one node; Ray starts both anew where they were if either dies."""

    def __init__(self, leader: str | None) -> None:
        host = ray.util.get_node_ip_address()
        role = ["--join", leader] if leader else ["--also-listen", f"{host}:{PORT}"]
        self._address = f"{host}:{PORT}"
        # The daemon goes with its actor: the next one needs the socket.
        command = ["setpriv", "--pdeathsig", "TERM", "foremoe", "serve", "--socket", SOCKET, *role]
        self._process = subprocess.Popen(command)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        """The actor goes with its daemon, unless that was told to stop."""
        if self._process.wait() != 0:
            os._exit(1)

    def address(self) -> str:
        return self._address

    def stop(self) -> int:
        """SIGTERM: the daemon drains."""
        self._process.terminate()
        return self._process.wait(timeout=30)


def start_daemons(node_ids: list[str]) -> list[ray.actor.ActorHandle]:
    first = _on(node_ids[0]).remote(None)
    leader = ray.get(first.address.remote())
    return [first, *(_on(node_id).remote(leader) for node_id in node_ids[1:])]


def stop_daemons(daemons: list[ray.actor.ActorHandle]) -> None:
    ray.get([daemon.stop.remote() for daemon in daemons])


def _on(node_id: str) -> type:
    return NodeDaemon.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    )
