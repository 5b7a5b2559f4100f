"""Weights on devices: what attaching refuses, and what follows them wherever they are."""

import pytest
import torch
from torch import nn

from foremoe.errors import InvalidInputError, TransferError
from foremoe.routing.replay import RoutingReplay
from foremoe.training.attachment import AttachOptions, _device
from foremoe.training.home_experts import HomeExperts

OPTIONS = AttachOptions(address=None)
UNTESTED = AttachOptions(address=None, untested_cuda=True)


class Elsewhere(HomeExperts):
    """As if the weights were on another device."""

    __slots__ = ()
    where = torch.device("cuda", 1)

    @property
    def device(self) -> torch.device:
        return self.where


def home(kind: type[HomeExperts] = HomeExperts, device: str = "cpu") -> HomeExperts:
    return kind(3, {"down": nn.Parameter(torch.zeros(2, 4, 4, device=device))}, (0, 1))


def test_weights_on_cuda_need_an_option_that_says_that_it_is_untested() -> None:
    with pytest.raises(InvalidInputError, match=r"no GPU has run .*AttachOptions\(untested_cuda="):
        _device([home(Elsewhere)], OPTIONS)
    with pytest.raises(InvalidInputError, match=r"weights are on meta"):
        _device([home(device="meta")], UNTESTED)
    with pytest.raises(InvalidInputError, match=r"on one device, not on \['cpu', 'cuda:1'\]"):
        _device([home(), home(Elsewhere)], UNTESTED)
    with pytest.raises(InvalidInputError, match="at least one MoE layer"):
        _device([], OPTIONS)
    assert _device([home(), home()], UNTESTED).type == "cpu"


def test_the_weights_device_must_be_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current = torch.device("cuda", 0)
    monkeypatch.setattr("foremoe.training.attachment.cuda_device", lambda: current)
    with pytest.raises(InvalidInputError, match=r"call torch.cuda.set_device\(1\) first"):
        _device([home(Elsewhere)], UNTESTED)
    current = Elsewhere.where
    assert _device([home(Elsewhere)], UNTESTED) == current


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_the_option_does_not_help_where_there_is_no_device() -> None:
    with pytest.raises(TransferError, match="no CUDA device"):
        _device([home(Elsewhere)], UNTESTED)


def test_routing_given_on_the_cpu_follows_the_router_to_its_device() -> None:
    replay = RoutingReplay((5,), 2)
    chosen = torch.zeros(3, 2, dtype=torch.int64, device="meta")
    weights = torch.ones(3, 2, device="meta")

    def scores(expert_ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(expert_ids.shape, device=expert_ids.device)

    with replay.replay(torch.zeros(3, 1, 2, dtype=torch.int64)):
        used, used_weights = replay.route(5, chosen, weights, scores)
    assert (used.device.type, used_weights.device.type) == ("meta", "meta")
    with replay.record(torch.ones(3, dtype=torch.bool)) as recorded:
        replay.route(5, chosen, weights, scores)
    assert recorded().device.type == "meta"
