"""A daemon under fuzz: calls one after another, each judged, its state and memory watched."""

import contextlib
import os
import random
import re
import socket
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from foremoe.rpc.registration import encode_registration
from foremoe.rpc.status import RuntimeStatus, StepState, decode_status
from foremoe.rpc.v1 import rank_pb2, stage_pb2
from foremoe.rpc.v1.schedule_pb2 import ReleaseStepRequest
from foremoe.rpc.v1.status_pb2 import GetStatusResponse
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.eventually import eventually
from tests.runtime.fuzz_calls import (
    GROUP,
    MOVING,
    REFLECTION,
    SEQUENCES,
    STEP,
    STREAM,
    TOKEN,
    UPLOAD,
    Case,
    submission,
)
from tests.runtime.fuzz_oracle import complaint, parsed
from tests.runtime.uploads import upload

CALL_SECONDS = 20.0
QUIET_SECONDS = 0.05  # of a plan stream that was accepted and has no plans
CASES_A_ROUND = 200
REFUSED_A_LOOK = 3
_OURS = "/foremoe.rpc.v1."
_METADATA = (("authorization", f"Bearer {TOKEN}"),)
_FAULTS = re.compile(r"Traceback|internal error|planning failed| ERROR ")


class FuzzedDaemon:
    """``failures`` are what should not have happened; ``counts`` answers by target and status.

    ``memory`` and ``descriptors`` of the daemon are noted at the end of every round, when it holds
    no step.
    """

    def __init__(self, folder: Path) -> None:
        token = folder / "token"
        token.touch(0o600)
        token.write_text(TOKEN)
        self.failures: list[str] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self._options = ("--memory-limit", "8M", "--max-steps", "4", "--token-file", str(token))
        self._daemon = DaemonProcess(folder, *self._options)
        self._calls: dict[str, Any] = {}
        self._home_bytes: dict[str, int] = {}
        self._refused: list[Case] = []
        self._cases = 0
        self._before: RuntimeStatus | None = None

    def __enter__(self) -> Self:
        self._daemon.__enter__()
        self._channel = self._daemon.open_channel()
        self._begin_round()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._channel.close()
        self._daemon.__exit__(kind, error, trace)

    def run(self, case: Case) -> None:
        """Make the call, judge the answer, look at the state now and then."""
        code, details = self._answer(case)
        self.counts[case.target, code.name] += 1
        problem = complaint(case, code, details)
        if problem is not None:
            self._fail(case, problem)
        if code is grpc.StatusCode.OK:
            self._note_registration(case)
            self._settle()
        else:
            self._refused.append(case)
            if len(self._refused) >= REFUSED_A_LOOK:
                self._look()
        self._cases += 1
        if self._cases % CASES_A_ROUND == 0:
            self.end_round()
            self._begin_round()

    def send_garbage(self, chance: random.Random) -> None:
        """A connection that speaks no gRPC, or stops in the middle of it."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        settings = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        start = chance.choice((b"", preface[: chance.randrange(24)], preface, preface + settings))
        ending = "open"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(0.02)
            connection.connect(self._daemon.address)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(start + chance.randbytes(chance.choice((9, 100, 5000))))
            with contextlib.suppress(TimeoutError):
                try:
                    while connection.recv(65536):
                        pass
                    ending = "closed"
                except ConnectionResetError:
                    ending = "closed"
        self.counts["garbage on the socket", ending] += 1

    def end_round(self) -> None:
        """Release every step: only the homes of groups that move them may stay."""
        self._look()
        for step in self._status().steps:
            self._call_right("ScheduleService/ReleaseStep", _release(step.step))
        stored, expected = self._status().stored_bytes, sum(self._home_bytes.values())
        if stored != expected:
            self.failures.append(f"{stored} bytes are held without any step, expected {expected}")
        self.memory.append(self._memory())
        self.descriptors.append(len(os.listdir(f"/proc/{self._daemon.process.pid}/fd")))

    def finish(self) -> None:
        """The daemon still works, has logged no fault, and stops when it is told to."""
        self._look()
        eventually(lambda: not any(group.streaming for group in self._status().ep_groups))
        code = self._daemon.terminate()
        if code != 0:
            self.failures.append(f"the daemon ended with {code}")
        for line in self._daemon.log.read_text().splitlines():
            if _FAULTS.search(line):
                self.failures.append(f"in the daemon's log: {line[:300]}")

    def _begin_round(self) -> None:
        for registration in (GROUP, replace(GROUP, rank=1), MOVING):
            data = encode_registration(registration).SerializeToString()
            self._call_right("RankService/RegisterRank", data)
        homes = len(MOVING.layers) * MOVING.num_experts * 4
        self._home_bytes.setdefault(MOVING.ep_group, homes)
        self._home_bytes.setdefault(GROUP.ep_group, 0)
        messages = [message.SerializeToString() for message in upload(STEP, SEQUENCES)]
        self._callable(UPLOAD)(iter(messages), timeout=CALL_SECONDS, metadata=_METADATA)
        request = submission(STEP, stage_pb2.STAGE_RECOMPUTE)
        self._call_right("ScheduleService/SubmitSchedule", request.SerializeToString())
        self._settle()

    def _call_right(self, method: str, data: bytes) -> None:
        self._callable(_OURS + method)(data, timeout=CALL_SECONDS, metadata=_METADATA)

    def _callable(self, method: str) -> Any:
        if method not in self._calls:
            kind = {UPLOAD: "stream_unary", STREAM: "unary_stream", REFLECTION: "stream_stream"}
            make = getattr(self._channel, kind.get(method, "unary_unary"))
            self._calls[method] = make(method, request_serializer=_raw, response_deserializer=_raw)
        return self._calls[method]

    def _answer(self, case: Case) -> tuple[grpc.StatusCode, str]:
        options: dict[str, Any] = {"timeout": CALL_SECONDS}
        if case.method.startswith(_OURS) and case.token is not None:
            options["metadata"] = (("authorization", f"Bearer {case.token}"),)
        try:
            if case.method == STREAM:
                return self._stream_answer(case, options)
            if case.method == UPLOAD:
                self._callable(UPLOAD)(iter(case.messages), **options)
            elif case.method == REFLECTION:
                list(self._callable(REFLECTION)(iter(case.messages), **options))
            else:
                self._callable(case.method)(case.messages[0], **options)
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""

    def _stream_answer(self, case: Case, options: dict[str, Any]) -> tuple[grpc.StatusCode, str]:
        """A plan stream that is taken has plans at once, or none are held for its group."""
        request = parsed(case)
        quiet = (
            isinstance(request, rank_pb2.StreamPlansRequest)
            and request.ep_group in self._home_bytes
        )
        if quiet:
            options["timeout"] = QUIET_SECONDS
        call = self._callable(STREAM)(case.messages[0], **options)
        try:
            next(call)
        except grpc.RpcError as error:
            if quiet and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return grpc.StatusCode.OK, ""
            raise
        finally:
            call.cancel()
        return grpc.StatusCode.OK, ""

    def _note_registration(self, case: Case) -> None:
        request = parsed(case) if case.target == "RegisterRank" else None
        if isinstance(request, rank_pb2.RegisterRankRequest):
            size = len(request.layers) * request.num_experts * 4 * request.moves_homes
            self._home_bytes.setdefault(request.ep_group, size)

    def _look(self) -> None:
        """Nothing that was refused since the last look may have changed anything."""
        deadline = time.monotonic() + 2.0
        while self._refused and (found := self._steady()) != self._before:
            if time.monotonic() > deadline:
                for case in self._refused:
                    self._fail(case, f"was refused, but changed {_changed(self._before, found)}")
                self._before = found
                break
            time.sleep(0.002)
        self._refused.clear()

    def _settle(self) -> None:
        """Wait until nothing is being planned; what is there then is the state to keep."""
        eventually(lambda: all(map(_is_planned, self._status().steps)))
        self._before = self._steady()
        self._refused.clear()

    def _steady(self) -> RuntimeStatus:
        """The status without what passes by itself."""
        status = self._status()
        groups = tuple(replace(group, streaming=0, latest=()) for group in status.ep_groups)
        return replace(status, uptime_seconds=0.0, ep_groups=groups)

    def _status(self) -> RuntimeStatus:
        call = self._callable(f"{_OURS}StatusService/GetStatus")
        answer = call(b"", timeout=CALL_SECONDS, metadata=_METADATA)
        return decode_status(GetStatusResponse.FromString(answer))

    def _memory(self) -> int:
        lines = Path(f"/proc/{self._daemon.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))

    def _fail(self, case: Case, problem: str) -> None:
        sent = " ".join(message[:200].hex() or "-" for message in case.messages)
        self.failures.append(f"{case.target}: {problem}; sent {sent[:2000]}")


def _is_planned(step: Any) -> bool:
    return step.state in (StepState.COLLECTING, StepState.PLANNED) or all(
        stage.planned == stage.micro_steps and stage.planning_seconds > 0 for stage in step.stages
    )


def _changed(before: RuntimeStatus | None, after: RuntimeStatus) -> str:
    names = [field.name for field in fields(after)]
    return ", ".join(n for n in names if getattr(before, n, None) != getattr(after, n))


def _release(step: int) -> bytes:
    return ReleaseStepRequest(step=step).SerializeToString()


def _raw(data: bytes) -> bytes:
    return data
