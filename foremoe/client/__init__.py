"""Clients of the runtime: ControllerClient for the RL controller, RankClient for training ranks."""

from foremoe.client.controller import ControllerClient
from foremoe.client.rank import RankClient, RankPlan
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.schedule import MicroStepSchedule

__all__ = [
    "ControllerClient",
    "MicroStepReport",
    "MicroStepSchedule",
    "RankClient",
    "RankPlan",
    "RankRegistration",
]
