"""The daemon's log on stderr, as text or as JSON lines."""

import json
import logging
from datetime import UTC, datetime

LOG_FORMATS = ("text", "json")
LOG_LEVELS = ("debug", "info", "warning", "error")


def set_up_logging(log_format: str, level: str) -> None:
    """``log_format`` is one of LOG_FORMATS; ``level``, of our own lines, is one of LOG_LEVELS."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonLines()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("foremoe").setLevel(level.upper())


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, and what the line is about.

    That is the record's ``fields``, if it has any: step, ep_group, stage, micro_step.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
