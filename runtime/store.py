"""The foresight of one step: what every sequence will load each expert with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import ConflictError
from foremoe.rpc.foresight import UploadHeader

SEQUENCE_OVERHEAD_BYTES = 1024  # id, objects and dict entry of one sequence, rounded up


@dataclass(frozen=True, slots=True, eq=False)
class SequenceForesight:
    """One sequence: its tokens and (token, expert) pairs, uint32 ``[L, E]``."""

    tokens: int
    histogram: NDArray[np.uint32]

    def equals(self, other: "SequenceForesight") -> bool:
        return self.tokens == other.tokens and np.array_equal(self.histogram, other.histogram)


class ForesightStore:
    """All committed sequences of one step; the first upload fixes layers, experts and top_k."""

    def __init__(self, header: UploadHeader) -> None:
        self.header = header
        self.sequences: dict[str, SequenceForesight] = {}

    @property
    def stored_bytes(self) -> int:
        size = self.header.histogram_bytes + SEQUENCE_OVERHEAD_BYTES
        return len(self.sequences) * size

    def commit(
        self, header: UploadHeader, sequences: Mapping[str, SequenceForesight]
    ) -> tuple[int, int]:
        """Keep ``sequences``, all or none; the counts that were new and that were known.

        Raises ConflictError when the model differs from the step's or a known sequence has other
        content.
        """
        self._check_same_model(header)
        known = sequences.keys() & self.sequences.keys()
        for sequence_id in known:
            if not sequences[sequence_id].equals(self.sequences[sequence_id]):
                raise ConflictError(
                    f"sequence {sequence_id!r} of step {header.step} was uploaded before with "
                    "other content; nothing of this upload was kept, give the sequence a new id"
                )
        self.sequences.update(
            (name, sequence) for name, sequence in sequences.items() if name not in known
        )
        return len(sequences) - len(known), len(known)

    def _check_same_model(self, header: UploadHeader) -> None:
        for field in ("layers", "num_experts", "top_k"):
            earlier: Any = getattr(self.header, field)
            given: Any = getattr(header, field)
            if given != earlier:
                raise ConflictError(
                    f"header.{field}: step {header.step} was begun with {_short(earlier)}, "
                    f"got {_short(given)}"
                )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
