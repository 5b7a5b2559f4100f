"""An update stage of a real daemon with two ranks, and what it told of it."""

import io
from contextlib import redirect_stderr
from pathlib import Path

from foremoe.cli import main
from foremoe.planner.plan import Plan
from foremoe.rpc.timeline import MAX_SPANS
from foremoe.vocabulary import Stage
from tests.runtime.daemon_process import DaemonProcess
from tests.runtime.steps import attached

FIGURES = ["layers", "heatmap", "imbalance", "frontier", "traffic", "planning", "timeline"]
CHARTS = [f"{figure}-update" for figure in FIGURES] + ["planning"]
GROUP = "ep0"


class Told:
    """html: its page; planned: an earlier one, before any rank ran; kept: what it said, as a file.

    folder: what it left when it stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.html, self.kept, self.folder = folder / "r.html", folder / "r.status", folder / "run"
        self.planned = folder / "planned.html"
        arguments = ["report", "--socket", str(folder / "s"), "--out", str(self.html)]
        arguments += ["--keep", str(self.kept)]
        with DaemonProcess(folder, "--timeline", str(self.folder)) as daemon:
            with attached(daemon, GROUP, MAX_SPANS) as group:
                early = io.StringIO()
                with redirect_stderr(early):
                    assert main(arguments) == 2
                self.said_early = early.getvalue()
                group.upload(0)
                self.plans: list[Plan] = group.schedule(0, Stage.UPDATE)
                assert main([*arguments, "--out", str(self.planned)]) == 0
                group.report(0, Stage.UPDATE, self.plans)
                assert main(arguments) == 0
                self.polled, self.status = (group.controller.status(of) for of in ("", GROUP))
            daemon.terminate()
