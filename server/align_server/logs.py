"""How the server writes its log: one line per event, coloured on a terminal, plain in a file."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(*, verbose: bool) -> None:
    """Log to stderr; `verbose` adds a line for every segment and every batch."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                # Others show local variables, in boxes: what was said in a recording has no place in a log.
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,  # else each question whether to log makes a logger
    )
