"""A daemon's status with all that a report draws."""

from dataclasses import replace

from foremoe.client.controller import ControllerClient
from foremoe.rpc.status import RuntimeStatus


def detailed_status(client: ControllerClient) -> RuntimeStatus:
    """Figures are told of one EP group at a time, so that no message gets too large."""
    status = client.status()
    groups = tuple(
        group
        for named in status.ep_groups
        for group in client.status(named.ep_group).ep_groups
        if group.ep_group == named.ep_group
    )
    return replace(status, ep_groups=groups)
