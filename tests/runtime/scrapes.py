"""The metrics port of a daemon under test, as a scraper sees it."""

import re
import urllib.error
import urllib.request

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.runtime.daemon_process import DaemonProcess


def metrics_address(daemon: DaemonProcess) -> str:
    """``http://127.0.0.1:PORT``, as the daemon logged it."""
    found = re.search(r"metrics at (http://\S+)", daemon.log.read_text())
    assert found is not None, daemon.log.read_text()
    return found[1]


def fetch(url: str, **headers: str) -> tuple[int, str]:
    """Status and body, whatever the status."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Scrape:
    """All samples of one scrape."""

    def __init__(self, daemon: DaemonProcess) -> None:
        status, text = fetch(metrics_address(daemon) + "/metrics")
        assert status == 200
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self.samples = [sample for family in self.families for sample in family.samples]

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def values(self, name: str, by: str, **labels: str) -> dict[str, float]:
        """The samples with these labels by another label; they may not clash."""
        found = {}
        for sample in self.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                key = sample.labels[by]
                assert key not in found, f"{name} has more labels than {labels} and {by}"
                found[key] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float:
        """The one sample with these labels."""
        (value,) = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return value
