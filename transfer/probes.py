"""All transports that can be tried on a machine, in the order in which an engine prefers them."""

from foremoe.transfer.cuda_ipc import CudaIpcTransport
from foremoe.transfer.cupy_wire import CupyWire
from foremoe.transfer.host import SharedMemoryTransport
from foremoe.transfer.host_stream import HostStreamTransport
from foremoe.transfer.peer import GlooPeerTransport
from foremoe.transfer.torch_wire import TorchWire
from foremoe.transfer.transport import Probed

CPU: tuple[type[Probed], ...] = (SharedMemoryTransport, GlooPeerTransport)
CUDA: tuple[type[Probed], ...] = (HostStreamTransport, CudaIpcTransport, TorchWire, CupyWire)
