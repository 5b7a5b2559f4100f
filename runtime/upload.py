"""An upload that is not committed yet: it can still vanish without a trace."""

import zlib
from collections.abc import Callable

from foremoe.crash_points import CrashPoint, crash_point
from foremoe.errors import InvalidInputError
from foremoe.limits import check_range
from foremoe.rpc.foresight import MAX_TOKENS, SequencePiece, UploadHeader
from foremoe.rpc.v1.foresight_pb2 import ForesightCommit
from foremoe.runtime.store import SEQUENCE_OVERHEAD_BYTES, SequenceForesight

Reserve = Callable[[int], None]


class StagedUpload:
    """Sequences received so far, and what the commit must agree with.

    ``reserve`` takes bytes from the daemon's budget or raises ExhaustedError; ``reserved_bytes``
    is what this upload has taken.
    """

    def __init__(self, header: UploadHeader, reserve: Reserve) -> None:
        self.header = header
        self.sequences: dict[str, SequenceForesight] = {}
        self.reserved_bytes = 0
        self.chunks = 0
        self._reserve = reserve
        self._payload_bytes = 0
        self._crc32 = 0

    def add(self, piece: SequencePiece) -> None:
        """Take a piece in; pieces of one sequence add up. Raises ExhaustedError."""
        earlier = self.sequences.get(piece.sequence_id)
        if earlier is None:
            size = self.header.histogram_bytes + SEQUENCE_OVERHEAD_BYTES
            self._reserve(size)
            self.reserved_bytes += size
            sequence = SequenceForesight(piece.tokens, piece.histogram)
        else:
            tokens = earlier.tokens + piece.tokens
            check_range(tokens, 1, MAX_TOKENS, f"sequence {piece.sequence_id!r}: tokens")
            sequence = SequenceForesight(tokens, earlier.histogram + piece.histogram)
        self.sequences[piece.sequence_id] = sequence
        self.chunks += 1
        self._payload_bytes += piece.payload.nbytes
        self._crc32 = zlib.crc32(piece.payload.data, self._crc32)
        crash_point(CrashPoint.STAGED)

    def verify(self, commit: ForesightCommit) -> None:
        """Raises InvalidInputError unless everything that was sent has arrived unchanged."""
        for name, sent, received in (
            ("chunks", commit.chunks, self.chunks),
            ("payload_bytes", commit.payload_bytes, self._payload_bytes),
            ("crc32", commit.crc32, self._crc32),
        ):
            if sent != received:
                raise InvalidInputError(
                    f"commit.{name}: says {sent}, but {received} arrived; "
                    "nothing was kept, send the upload again"
                )
