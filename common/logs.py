"""Structured logs of the two daemons: one JSON object a line on stderr, for a journal or a collector to keep.

What is logged are events and coded errors, whose details hold no record and no secret.
"""

from __future__ import annotations

import logging
import sys

import structlog


def to_stderr() -> None:
    """Have every log of this process leave as JSON lines."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(sort_keys=True),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # These tell of every request, and Flower of every message; the audit and egress logs do that here.
    levels = dict.fromkeys(("httpx", "httpcore", "uvicorn", "uvicorn.error", "alembic", "sqlalchemy"), logging.WARNING)
    # What Flower calls an error is every late or foreign reply; they are refused, and the audit log has them.
    for noisy, level in (levels | {"flwr": logging.CRITICAL, "sqlalchemy.pool": logging.CRITICAL}).items():
        logging.getLogger(noisy).setLevel(level)
        logging.getLogger(noisy).handlers[:] = []
        logging.getLogger(noisy).propagate = True


def log(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger, to be called with an event and its fields."""
    made: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return made
