"""The other process of the CUDA IPC probe: ``python -m foremoe.transfer.ipc_trial``.

Reads a pickled handle from its parent, maps it, and prints the sum of its bytes.
"""

import pickle
import subprocess
import sys

import torch

from foremoe.errors import TransferError
from foremoe.transfer.shared_weights import export, open_handle
from foremoe.transfer.transport import cuda_device

_BYTES = 1024


def try_with_child(device: torch.device, wait_seconds: float) -> str:
    """Share a few bytes with a new process. Raises TransferError when it does not see them."""
    own = torch.full((_BYTES,), 7, dtype=torch.uint8, device=device)
    torch.cuda.synchronize(device)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "foremoe.transfer.ipc_trial"],
            input=pickle.dumps(export(own)),
            capture_output=True,
            timeout=wait_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TransferError(f"a child process took more than {wait_seconds} s") from error
    if child.returncode != 0:
        said = child.stderr.decode(errors="replace").strip().splitlines()
        raise TransferError(f"a child process could not map the memory: {(said or ['?'])[-1]}")
    if int(child.stdout) != 7 * _BYTES:
        raise TransferError("a child process read other bytes than were written")
    return f"{_BYTES} bytes read by a child process on {torch.cuda.get_device_name(device)}"


def main() -> None:
    """Serve one trial."""
    shared = open_handle(pickle.load(sys.stdin.buffer), cuda_device())
    print(int(shared.sum().item()))


if __name__ == "__main__":
    main()
