"""JSON logs with the fields of the package (``extra``): keys ``lifecycle_*``.

Serve it with one of ::

    LOGS=json flask --app examples/logs.py lifecycle run -p 8000
    LOGS=structlog flask --app examples/logs.py lifecycle run -p 8000

The second needs structlog. Each change is logged once; probes and requests are not logged.
"""

from __future__ import annotations

import json
import logging
import os

import structlog
from flask import Flask
from structlog import stdlib

from flask_lifecycle import Lifecycle


class JSONFormatter(logging.Formatter):
    """One line of JSON for a record and its fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        line |= {key: value for key, value in vars(record).items() if key.startswith("lifecycle_")}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def structlog_formatter() -> logging.Formatter:
    """The same with structlog, for records of the standard library's logging."""
    return stdlib.ProcessorFormatter(
        foreign_pre_chain=[stdlib.add_log_level, stdlib.add_logger_name, stdlib.ExtraAdder()],
        processors=[
            stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ],
    )


handler = logging.StreamHandler()
handler.setFormatter(structlog_formatter() if os.environ.get("LOGS") == "structlog" else JSONFormatter())
logging.basicConfig(level=logging.INFO, handlers=[handler])

app = Flask(__name__)
lifecycle = Lifecycle(app)


@lifecycle.on_startup
def warm_up() -> None: ...


@lifecycle.on_shutdown
def close_pool() -> None: ...
