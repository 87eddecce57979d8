"""What happens, one line per event, for people or for machines; nothing secret is ever among the fields."""

from __future__ import annotations

import json
import logging
import time

logger = logging.getLogger("partime_async.serve")

_FIELDS = "partime_fields"


def event(name: str, *, level: int = logging.INFO, **fields: str | float | None) -> None:
    """Log one event.

    Args:
        name: Noun and verb in the past: ``client.joined``.
        level: Of `logging`.
        fields: What is known about it; those that are None are left out.
    """
    if logger.isEnabledFor(level):
        known = {key: value for key, value in fields.items() if value is not None}
        words = " ".join(f"{key}={_told(value)}" for key, value in known.items())
        logger.log(level, "%s %s" if words else "%s%s", name, words, extra={_FIELDS: {"event": name, **known}})


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object: time (UTC), level, event, and the event's fields."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        fields = getattr(record, _FIELDS, None) or {"event": "log", "logger": record.name, "words": record.getMessage()}
        at = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        line = {"time": at, "level": record.levelname.lower(), **fields}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Writes a record as one line for people: time of day, event, fields."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")


def _told(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    words = str(value)
    # What came from outside must not begin a line of its own.
    return words if words.isascii() and words.isprintable() and " " not in words else json.dumps(words)
