"""Two nodes on one machine: a leader and a follower, each with a socket of its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from foremoe.client import ControllerClient, RankClient
from foremoe.rpc.credentials import Credentials
from tests.runtime.certificates import Authority, tls_options
from tests.runtime.daemon_process import DaemonProcess, free_port
from tests.runtime.steps import GROUP, RANKS, Group

TOKEN = "token-of-the-job-of-this-test"


@dataclass
class Nodes:
    """Where things are, and how each daemon is started; they are ended with the test."""

    folder: Path
    leader_credentials: Credentials
    follower_credentials: Credentials
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.port = free_port()
        for name in ("leader", "follower"):
            (self.folder / name).mkdir(mode=0o700)

    @classmethod
    def create(
        cls, folder: Path, authority: Authority, *names: str, host: str = "127.0.0.1"
    ) -> "Nodes":
        """names: further alternative names of the leader, IP:10.0.0.1, say; host: its address."""
        token = folder / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        issued = (authority.issue("leader", *names), authority.issue("follower"))
        return cls(folder, *(replace(one, token_file=str(token)) for one in issued), host)

    @property
    def job(self) -> Credentials:
        """What ranks and controller have: the token."""
        return Credentials(token_file=self.leader_credentials.token_file)

    @property
    def sockets(self) -> tuple[str, str]:
        """Of the leader and of the follower."""
        return str(self.folder / "leader" / "s"), str(self.folder / "follower" / "s")

    def leader(self, *options: str, prefix: tuple[str, ...] = ()) -> DaemonProcess:
        shown = tls_options(self.leader_credentials)
        listen = ["--also-listen", f"{self.host}:{self.port}", *shown]
        return DaemonProcess(self.folder / "leader", *listen, *options, prefix=prefix)

    def follower(self, *options: str, prefix: tuple[str, ...] = ()) -> DaemonProcess:
        shown = tls_options(self.follower_credentials)
        join = ["--join", f"{self.host}:{self.port}", *shown]
        return DaemonProcess(self.folder / "follower", *join, *options, prefix=prefix)

    @contextmanager
    def attached(self, name: str) -> Iterator[Group]:
        """A group with a rank on each node, and a controller beside the leader."""
        group = replace(GROUP, ep_group=name, ranks_per_node=RANKS // 2)
        with ExitStack() as open_now:
            controller = ControllerClient(self.sockets[0], credentials=self.job)
            open_now.enter_context(controller)
            ranks = [
                RankClient(socket, replace(group, rank=rank), self.job)
                for rank, socket in enumerate(self.sockets)
            ]
            yield Group(controller, name, [open_now.enter_context(rank) for rank in ranks])
