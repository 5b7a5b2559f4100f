"""The mark of tests that need a CUDA device; elsewhere they are skipped, and say so."""

import pytest
import torch

from foremoe.errors import TransferError
from foremoe.transfer.transport import cuda_device


def _why_not() -> str:
    try:
        cuda_device()
    except TransferError as error:
        return str(error)
    return ""


WHY_NOT = _why_not()
GPU = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "a GPU is here")]
DEVICE = torch.device("cuda", 0)
