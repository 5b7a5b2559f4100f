"""Probes move real bytes, and say why where a transport does not work."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from foremoe.transfer.cuda_ipc import CudaIpcTransport
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.host_cache import HostExpertCache
from foremoe.transfer.host_stream import HostStreamTransport
from foremoe.transfer.peer import GlooPeerTransport
from foremoe.transfer.probes import CPU, CUDA
from foremoe.transfer.slab import SlabLayout
from foremoe.transfer.torch_wire import TorchWire
from foremoe.transfer.transport import Probed, ProbeSite
from tests.transfer.cuda import GPU, WHY_NOT


@pytest.fixture
def site(tmp_path: Path) -> ProbeSite:
    return ProbeSite(tmp_path, wait_seconds=30.0)


@pytest.mark.parametrize("transport", CPU)
def test_transports_of_the_cpu_work_and_leave_nothing(
    transport: type[Probed], site: ProbeSite
) -> None:
    probe = transport.probe(site)
    assert (probe.works, probe.name, probe.path) == (True, transport.name, transport.path)
    assert probe.reason.startswith("256 KiB ")
    assert list(site.directory.iterdir()) == []


def test_a_host_cache_without_its_directory_does_not_work(tmp_path: Path) -> None:
    probe = SharedMemoryTransport.probe(ProbeSite(tmp_path / "missing"))
    assert (probe.works, "cannot use" in probe.reason) == (False, True)


def test_a_host_cache_that_gives_other_bytes_does_not_work(
    site: ProbeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = HostExpertCache.read

    def flip(
        cache: HostExpertCache, layer: int, expert: int, generation: int, out: Tensor, first: int
    ) -> None:
        read(cache, layer, expert, generation, out, first)
        out[100] ^= 1

    monkeypatch.setattr(HostExpertCache, "read", flip)
    probe = SharedMemoryTransport.probe(site)
    assert (probe.works, probe.reason) == (False, "other bytes arrived than were sent")
    monkeypatch.setattr(HostExpertCache, "read", lambda *_: None)
    assert "stamped None" in SharedMemoryTransport.probe(site).reason
    assert list(site.directory.iterdir()) == []


def test_gloo_without_a_network_does_not_work(
    site: ProbeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    probe = GlooPeerTransport.probe(site)
    assert (probe.works, "nosuch0" in probe.reason) == (False, True), probe


def test_gloo_that_loses_its_messages_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foremoe.transfer.peer_rounds.Wire.send", lambda *_: [])
    probe = GlooPeerTransport.probe(ProbeSite(tmp_path, wait_seconds=0.5))
    assert not probe.works
    assert "slot 0: did not fill within 0.5 s" in probe.reason or "lost" in probe.reason


@pytest.mark.skipif(not WHY_NOT, reason="a CUDA device is here")
@pytest.mark.parametrize("transport", CUDA)
def test_transports_of_cuda_say_that_there_is_no_device(
    transport: type[Probed], site: ProbeSite
) -> None:
    probe = transport.probe(site)
    assert (probe.works, probe.reason) == (False, WHY_NOT)
    assert probe.reason.startswith("no CUDA device")


class TestOnGpu:
    pytestmark = GPU

    @pytest.mark.parametrize("transport", [HostStreamTransport, CudaIpcTransport, TorchWire])
    def test_transports_of_cuda_work(self, transport: type[Probed], tmp_path: Path) -> None:
        probe = transport.probe(ProbeSite(tmp_path, wait_seconds=90.0))
        assert probe.works, probe.reason
        assert list(tmp_path.iterdir()) == []

    def test_a_refused_registration_leaves_cuda_usable(self, tmp_path: Path) -> None:
        from foremoe.errors import TransferError
        from foremoe.transfer.pinning import PinnedSlabs
        from tests.transfer.cuda import DEVICE

        layout = SlabLayout.from_shapes({"bytes": (1 << 20,)}, torch.uint8)
        cache = HostExpertCache.create(tmp_path, [0], 1, layout, local_ranks=1)
        first = PinnedSlabs(cache, DEVICE, wait_seconds=5.0)
        with pytest.raises(TransferError, match="cudaHostRegister"):
            PinnedSlabs(cache, DEVICE, wait_seconds=5.0)
        assert int(torch.ones(4, device=DEVICE).sum().item()) == 4
        first.close()
        cache.unlink()
        cache.close()
