"""The daemon's memory as numbers: what is reserved, and the limit it stays under."""

from foremoe.errors import ExhaustedError


class ByteBudget:
    """Bytes reserved and released in pairs; never above ``limit``."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, size: int) -> bool:
        return self.used + size <= self.limit

    def check_possible(self, size: int) -> None:
        """Raises ExhaustedError for more than there ever is."""
        if size > self.limit:
            raise ExhaustedError(
                f"memory limit: {size} bytes would be needed, the limit is {self.limit}; start the "
                "daemon with a higher --memory-limit"
            )

    def reserve(self, size: int) -> None:
        """Raises ExhaustedError, reserving nothing, when the limit would be exceeded."""
        if not self.fits(size):
            raise ExhaustedError(
                f"memory limit: {size} bytes more than the {self.used} in use would exceed "
                f"{self.limit}; release steps that are done, or start the daemon with a higher "
                "--memory-limit"
            )
        self.used += size

    def release(self, size: int) -> None:
        assert 0 <= size <= self.used, f"released {size} of {self.used} reserved bytes"
        self.used -= size
