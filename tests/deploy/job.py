"""What torchrun runs in the tests: a rank that joins its node's daemon and sees all ranks there."""

import os
import time

from foremoe.client import ControllerClient, RankClient, RankRegistration

rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
per_node = int(os.environ["LOCAL_WORLD_SIZE"])
address = os.environ["FOREMOE_SOCKET"]
registration = RankRegistration("ep0", rank, ranks, per_node, 1, 2 * ranks, (0,))
deadline = time.monotonic() + 60
with RankClient(address, registration), ControllerClient(address, retry_seconds=60) as controller:
    while [group.streaming for group in controller.status().ep_groups] != [ranks]:
        assert time.monotonic() < deadline, controller.status()
        time.sleep(0.05)
    print(f"rank {rank} of {ranks} sees all by {controller.status().daemon_id}", flush=True)
    time.sleep(1)  # the others look until they have seen all, too
