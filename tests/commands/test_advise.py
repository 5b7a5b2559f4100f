"""``foremoe advise``: memory and time decide, and every choice comes with its reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from foremoe.advice import Limits, advise, divisions
from foremoe.cli import main
from foremoe.errors import InvalidInputError
from foremoe.simulation.cluster import machine

GIB = 2**30
LIMITS = Limits(
    gpu_bytes=80 * GIB,
    host_bytes=512 * GIB,
    reserve=0.4,
    tokens=16384,
    micro_steps_per_mini_batch=8,
)
QWEN = machine("qwen3-30b-a3b", "h100x64", None)


def test_memory_of_a_rank_is_that_of_its_experts_their_state_and_its_share_of_the_rest() -> None:
    way = next(way for way in divisions(QWEN, LIMITS) if (way.ep, way.etp) == (16, 1))
    experts = 48 * 128 / 16 * 3 * 2048 * 768
    # bf16 weights and float32 gradients; master weights and moments over four copies.
    expected = experts * (2 + 4 + 12 / 4) + 48 * 18874368 * 18 / 64
    assert way.memory_bytes == pytest.approx(expected)
    assert way.free_bytes == pytest.approx(48 * GIB - expected)


def test_the_fastest_division_that_fits_is_advised() -> None:
    advice = advise(QWEN, LIMITS)
    fitting = [way for way in divisions(QWEN, LIMITS) if way.fits and way.etp == 1]
    assert advice.division == min(fitting, key=lambda way: way.seconds)
    assert (advice.division.ep, advice.spare_slots, advice.resident_layers) == (8, 2, 48)
    assert advice.cache_bytes == 48 * 128 * 2 * 3 * 2048 * 768
    assert any("EP 2 needs 86.3 GiB" in reason for reason in advice.reasons)


def test_less_memory_means_more_ranks_fewer_slots_and_no_cache() -> None:
    tight = replace(LIMITS, gpu_bytes=15 * GIB, host_bytes=1 * GIB)
    advice = advise(QWEN, tight)
    assert advice.division.ep > 16
    assert advice.cache_bytes == 0
    assert advice.spare_slots == 1
    assert advice.slot_bytes <= advice.division.free_bytes
    assert any("no host cache" in reason for reason in advice.reasons)


def test_experts_are_divided_only_where_whole_ones_fit_nowhere() -> None:
    mixtral = machine("mixtral-8x7b", "h100x64", None)
    assert advise(mixtral, LIMITS).division.etp == 1
    advice = advise(mixtral, replace(LIMITS, gpu_bytes=45 * GIB))
    assert advice.division.etp == 2
    assert any("ForeMoE does not balance" in reason for reason in advice.reasons)


def test_small_micro_steps_expose_copies() -> None:
    small = advise(QWEN, replace(LIMITS, tokens=64))
    assert small.hiding_tokens > 64
    assert "partly exposed" in small.reasons[-1]
    assert "copies are hidden" in advise(QWEN, LIMITS).reasons[-1]


def test_what_fits_nowhere_is_said() -> None:
    with pytest.raises(InvalidInputError, match=r"does not fit into 64 ranks .*take more ranks"):
        advise(machine("deepseek-v3", "h100x64", None), LIMITS)


def test_the_command_prints_and_writes_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "advice.json"
    given = ["advise", "--model", "qwen3-30b-a3b", "--cluster", "h100x64", "--json", str(file)]
    assert main(given) == 0
    record = json.loads(file.read_text())
    assert (record["ep"], record["etp"], record["spare_slots"]) == (8, 1, 2)
    assert "EP 8, ETP 1, spare_slots=2, host cache 54 GiB a node" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reserve", "1"], "--reserve 1.0: must be from 0 to below 1"),
        (["--gpu-gib", "nan"], "--gpu-gib nan: must be a number above 0"),
        (["--host-gib", "inf"], "--host-gib inf: must be a number above 0"),
        (["--json", "/nowhere/advice.json"], "--json: cannot write /nowhere/advice.json"),
        (["--cluster", "h100x63"], "no EP size up to the 8 ranks of a node divides 63 ranks"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["advise", "--model", "qwen3-30b-a3b", "--cluster", "h100x64", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_node_that_is_not_full_is_advised_too() -> None:
    """12 ranks: no 8 of them make whole EP groups, but 4 do."""
    assert advise(machine("gpt-oss-20b", "h100x12", None), LIMITS).division.ep == 4
