"""Clients of the runtime: ControllerClient for the RL controller, RankClient for training ranks."""

from foremoe.client.async_controller import AsyncControllerClient
from foremoe.client.controller import ControllerClient
from foremoe.client.rank import RankClient, RankPlan
from foremoe.planner.packing import AttentionCost
from foremoe.rpc.proposal import ScheduleProposal
from foremoe.rpc.registration import RankRegistration
from foremoe.rpc.report import MicroStepReport
from foremoe.rpc.schedule import MicroStepSchedule

__all__ = [
    "AsyncControllerClient",
    "AttentionCost",
    "ControllerClient",
    "MicroStepReport",
    "MicroStepSchedule",
    "RankClient",
    "RankPlan",
    "RankRegistration",
    "ScheduleProposal",
]
