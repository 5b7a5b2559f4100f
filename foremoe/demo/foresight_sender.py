"""Sends routing foresight to the daemon during the rollout; a lost daemon is not an error."""

import logging
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np

from foremoe.client.controller import ControllerClient
from foremoe.client.foresight_stream import ForesightStream
from foremoe.demo.sequence import Sequence
from foremoe.errors import ForemoeError

log = logging.getLogger(__name__)


class ForesightSender:
    """One upload of one rank: each sequence is streamed as it ends, all are committed together."""

    def __init__(
        self,
        client: ControllerClient,
        step: int,
        layers: tuple[int, ...],
        num_experts: int,
        top_k: int,
    ) -> None:
        self._client = client
        self._description = (step, layers, num_experts, top_k)
        self._upload = ExitStack()
        self._stream: ForesightStream | None = None

    def __enter__(self) -> Self:
        try:
            stream = self._client.foresight_stream(*self._description)
            self._stream = self._upload.enter_context(stream)
        except ForemoeError as error:
            self._lose(error)
        return self

    def send(self, sequence: Sequence) -> None:
        """Stream one finished sequence."""
        if self._stream is None:
            return
        try:
            self._stream.add(sequence.sequence_id, expert_ids=sequence.expert_ids.astype(np.uint16))
        except ForemoeError as error:
            self._lose(error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._upload.__exit__(kind, error, trace)
        except ForemoeError as lost:
            self._lose(lost)

    def _lose(self, error: ForemoeError) -> None:
        log.warning("no foresight for this step: %s", error)
        self._stream = None
