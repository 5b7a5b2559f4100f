"""Where experts live: the one rank per layer that owns an expert's parameters."""

import numpy as np
from numpy.typing import NDArray

from foremoe.errors import InvalidInputError


def contiguous_homes(layers: int, experts: int, ranks: int) -> NDArray[np.int32]:
    """Expert e on rank e * P // E, as training frameworks shard experts: int32 ``[L, E]``.

    Raises InvalidInputError unless every rank gets the same number of experts.
    """
    if ranks < 1:
        raise InvalidInputError(f"ranks: must be at least 1, got {ranks}")
    if experts < 1 or experts % ranks:
        raise InvalidInputError(
            f"{experts} experts cannot be shared evenly by {ranks} ranks; "
            "choose a number of ranks that divides the number of experts"
        )
    row = (np.arange(experts) * ranks // experts).astype(np.int32)
    return np.tile(row, (layers, 1))
