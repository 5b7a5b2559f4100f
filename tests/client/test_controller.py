"""The controller's client against a real daemon."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

import foremoe.client.foresight_stream as foresight_stream
from foremoe.cli import main
from foremoe.client import ControllerClient, MicroStepSchedule, RankClient, RankRegistration
from foremoe.errors import (
    ConflictError,
    ExhaustedError,
    InvalidInputError,
    UnavailableError,
    UnknownError,
)
from foremoe.foresight import verl
from foremoe.foresight.histogram import expert_histogram
from foremoe.foresight.model import MoeModel
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually

LAYERS = (1, 2, 5)
EXPERTS = 16
TOP_K = 4


def routing(tokens: int, seed: int = 0) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Expert ids uint8 ``[tokens, layers, top_k]``, no expert twice for a token."""
    order = np.random.default_rng(seed).random((tokens, len(LAYERS), EXPERTS)).argsort(axis=-1)
    return order[..., :TOP_K].astype(np.uint8)


def sequences(client: ControllerClient, step: int) -> int | None:
    return {held.step: held.sequences for held in client.status().steps}.get(step)


def fill(client: ControllerClient, step: int, indices: Iterable[int | str]) -> None:
    """Upload a sequence for each index; a string breaks off with KeyError."""
    ids = routing(3)
    with client.foresight_stream(step, LAYERS, EXPERTS, TOP_K) as stream:
        for index in indices:
            if isinstance(index, str):
                raise KeyError(index)
            stream.add(f"s{index}", expert_ids=ids)


def test_ids_and_histograms_are_the_same_foresight(daemon: DaemonProcess) -> None:
    ids = routing(50)
    with ControllerClient(daemon.address) as client:
        with client.foresight_stream(1, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", expert_ids=ids)
        assert (stream.sequences_added, stream.sequences_known) == (1, 0)
        with client.foresight_stream(1, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", histogram=expert_histogram(ids, EXPERTS))
            stream.add("b", expert_ids=ids[:1].astype(np.int32))
        assert (stream.sequences_added, stream.sequences_known) == (1, 1)


def test_decoded_routing_is_the_same_foresight(daemon: DaemonProcess) -> None:
    """Of an axis with all layers, padding and all, what counts is what the ids alone say."""
    model = MoeModel(EXPERTS, TOP_K, 7, (1, 2, 4, 5))
    captured = np.zeros((12, 7, TOP_K), np.int16)
    captured[2:11, [1, 2, 5]] = routing(9)
    captured[2:11, 4] = routing(9)[:, 0]
    mask = np.array([0] * 2 + [1] * 10)  # two rows of padding, and the last token
    with ControllerClient(daemon.address) as client:
        with client.foresight_stream(9, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", routing=verl.decode("a", captured, mask, model))
        with client.foresight_stream(9, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", expert_ids=routing(9))
            captured[:, 5] = 0
            with pytest.raises(InvalidInputError, match=r"'b', layer 5: layer not captured"):
                stream.add("b", routing=verl.decode("b", captured, mask, model))
            other = MoeModel(2 * EXPERTS, TOP_K, 7, model.layers)
            with pytest.raises(InvalidInputError, match="32 experts, the header says 16"):
                stream.add("c", routing=verl.decode("c", captured, mask, other))
        assert (stream.sequences_added, stream.sequences_known) == (0, 1)


def test_long_sequence_sent_as_ids_arrives_in_pieces(daemon: DaemonProcess) -> None:
    ids = routing(200_000)
    assert ids.nbytes > 2 << 20
    with ControllerClient(daemon.address) as client:
        with client.foresight_stream(2, LAYERS, EXPERTS, TOP_K, send_ids=True) as stream:
            stream.add("a", expert_ids=ids)
        with client.foresight_stream(2, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", expert_ids=ids)
        assert stream.sequences_known == 1


def test_bad_id_is_refused_before_it_is_sent(daemon: DaemonProcess) -> None:
    with ControllerClient(daemon.address) as client:
        with client.foresight_stream(8, LAYERS, EXPERTS, TOP_K, send_ids=True) as stream:
            for wrong in (routing(50) + 1, routing(50).astype(np.int32) - 1):
                with pytest.raises(InvalidInputError, match=r"ids must lie in \[0, 16\)"):
                    stream.add("bad", expert_ids=wrong)
            stream.add("good", expert_ids=routing(2))
        assert sequences(client, 8) == 1


def test_many_sequences_stream_while_they_finish(daemon: DaemonProcess) -> None:
    counts = expert_histogram(routing(10), EXPERTS)
    with ControllerClient(daemon.address) as client:
        with client.foresight_stream(3, LAYERS, EXPERTS, TOP_K) as stream:
            for index in range(1000):
                stream.add(f"s{index}", histogram=counts)
        assert sequences(client, 3) == 1000


def test_an_upload_too_large_to_be_repeated_is_taken_all_the_same(
    daemon: DaemonProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight_stream, "REPEATABLE_BYTES", 1000)
    with ControllerClient(daemon.address, retry_seconds=60) as client:
        fill(client, 42, range(100))
        assert sequences(client, 42) == 100


def test_exception_in_the_block_aborts_the_upload(daemon: DaemonProcess) -> None:
    with ControllerClient(daemon.address) as client:
        before = client.status().stored_bytes
        with pytest.raises(KeyError):
            fill(client, 4, [*range(200), "no sequence"])
        eventually(lambda: client.status().stored_bytes == before)
        assert sequences(client, 4) is None


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({}, "one of histogram, expert_ids and routing"),
        ({"expert_ids": routing(2).astype(np.int64)}, "int64"),
        ({"expert_ids": routing(2)[:, :2]}, r"\[2, 2, 4\]"),
        ({"expert_ids": routing(0)}, "at least 1 token"),
        ({"expert_ids": routing(2) + 16}, "there are 16 experts"),
        ({"expert_ids": np.zeros((), np.uint8)}, "at least 1 token"),
        ({"histogram": np.zeros((3, 16), np.int64)}, "int64"),
        ({"histogram": np.zeros((3, 15), np.uint32)}, r"\[3, 15\]"),
        ({"histogram": np.zeros((3, 16), np.uint32)}, "tokens"),
        ({"histogram": np.eye(3, 16, dtype=np.uint32) * 5}, "5 pairs"),
    ],
)
def test_bad_array_is_refused_and_the_stream_goes_on(
    daemon: DaemonProcess, arrays: dict[str, np.ndarray], text: str
) -> None:
    with ControllerClient(daemon.address) as client:
        client.release_step(5)
        with client.foresight_stream(5, LAYERS, EXPERTS, TOP_K) as stream:
            with pytest.raises(InvalidInputError, match=text):
                stream.add("bad", **arrays)
            stream.add("good", expert_ids=routing(2))
        assert sequences(client, 5) == 1


def test_daemons_refusals_come_back_as_their_classes(daemon: DaemonProcess) -> None:
    registration = RankRegistration("refusals", 0, 1, 1, 1, EXPERTS, LAYERS)
    once = [MicroStepSchedule(0, [["a"]])]
    with ControllerClient(daemon.address) as client, RankClient(daemon.address, registration):
        with client.foresight_stream(6, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", expert_ids=routing(2))
        with (
            pytest.raises(ConflictError, match="'a' of step 6"),
            client.foresight_stream(6, LAYERS, EXPERTS, TOP_K) as stream,
        ):
            stream.add("a", expert_ids=routing(3))
        with pytest.raises(UnknownError, match="'missing'"):
            client.submit_schedule(
                "refusals", 6, Stage.UPDATE, [MicroStepSchedule(0, [["missing"]])]
            )
        with pytest.raises(UnknownError, match="register its ranks first"):
            client.submit_schedule("nobody", 6, Stage.UPDATE, once)
        with pytest.raises(InvalidInputError, match="micro_steps"):
            client.submit_schedule("refusals", 6, Stage.UPDATE, [])
        with pytest.raises(InvalidInputError, match="give one of recompute, update"):
            client.submit_schedule("refusals", 6, cast(Stage, "rollout"), once)
        assert client.submit_schedule("refusals", 6, Stage.UPDATE, once) == 1
        with pytest.raises(ConflictError, match="another schedule"):
            client.submit_schedule("refusals", 6, Stage.UPDATE, once * 2)
        client.release_step(6)
        client.release_step(6)
        assert sequences(client, 6) is None


def test_refusal_in_the_middle_of_a_stream_reaches_the_sender(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (
        DaemonProcess(tmp_path, "--memory-limit", "64K") as daemon,
        ControllerClient(daemon.address) as client,
    ):
        with pytest.raises(ExhaustedError, match="memory limit"):
            fill(client, 1, range(100_000))
        assert client.status().stored_bytes == 0


def test_an_upload_that_was_ended_says_so(daemon: DaemonProcess) -> None:
    with ControllerClient(daemon.address) as client:
        stream = client.foresight_stream(41, LAYERS, EXPERTS, TOP_K).__enter__()
        stream.abort()
        with pytest.raises(UnavailableError, match="was ended before"):
            stream.add("a", expert_ids=routing(2))
        with pytest.raises(UnavailableError, match="was ended before"):
            stream.__exit__(None, None, None)
        assert sequences(client, 41) is None


def test_no_daemon_is_one_line_that_says_what_to_do(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = (
        f"no runtime answers at unix:{nowhere}; start one with: foremoe serve --socket {nowhere}"
    )
    with ControllerClient(nowhere) as client:
        with pytest.raises(UnavailableError, match=expected):
            client.status()
        with (
            pytest.raises(UnavailableError, match=expected),
            client.foresight_stream(1, LAYERS, EXPERTS, TOP_K) as stream,
        ):
            stream.add("a", expert_ids=routing(2))
    assert main(["status", "--socket", nowhere]) == 2
    assert capsys.readouterr().err == f"foremoe status: {expected}\n"


def test_frozen_daemon_is_unavailable_after_the_timeout(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (
        DaemonProcess(tmp_path) as daemon,
        ControllerClient(daemon.address, timeout_seconds=0.3) as client,
    ):
        client.status()
        daemon.process.send_signal(signal.SIGSTOP)
        with pytest.raises(UnavailableError, match="did not answer in time"):
            client.status()
        with (
            pytest.raises(UnavailableError, match="sending it again is safe"),
            client.foresight_stream(1, LAYERS, EXPERTS, TOP_K) as stream,
        ):
            stream.add("a", expert_ids=routing(2))


def test_frozen_daemon_does_not_hang_a_long_upload(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with (
        DaemonProcess(tmp_path) as daemon,
        ControllerClient(daemon.address, timeout_seconds=0.3) as client,
    ):
        client.status()
        daemon.process.send_signal(signal.SIGSTOP)
        ids = routing(20_000)

        def upload() -> None:
            with client.foresight_stream(1, LAYERS, EXPERTS, TOP_K, send_ids=True) as stream:
                for index in range(400):
                    stream.add(str(index), expert_ids=ids)

        with pytest.raises(UnavailableError, match="took nothing for"):
            upload()


FORKED = """
import os, sys
from foremoe.client import ControllerClient
client = ControllerClient(sys.argv[1])
child = os.fork()
if child == 0:
    os._exit(0 if client.status().pid else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_client_made_before_a_fork_works_after_it(daemon: DaemonProcess) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, daemon.address], timeout=30)
    assert done.returncode == 0


def test_status_command_prints_tables_or_json(
    daemon: DaemonProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    registration = RankRegistration("shown", 0, 1, 1, 1, EXPERTS, LAYERS)
    with ControllerClient(daemon.address) as client, RankClient(daemon.address, registration):
        with client.foresight_stream(7, LAYERS, EXPERTS, TOP_K) as stream:
            stream.add("a", expert_ids=routing(2))
        client.submit_schedule("shown", 7, Stage.UPDATE, [MicroStepSchedule(0, [["a"]])])
        eventually(
            lambda: (7, "planned") in {(held.step, held.state) for held in client.status().steps}
        )
        assert main(["status", "--socket", daemon.address]) == 0
        shown = capsys.readouterr().out
        assert "shown" in shown
        assert "…" not in shown  # 80 columns are enough
        assert "step 7: planned, 1 sequences" in shown
        assert main(["status", "--socket", daemon.address, "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    (step,) = [held for held in status["steps"] if held["step"] == 7]
    assert step["stages"][0]["planned"] == 1
    assert status["pid"] == daemon.process.pid
