"""kmd's log: one JSON object per line, secrets removed by one processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable


def file_log(stream: TextIO) -> Callable[..., None]:
    """
    Return a function ``log(event, **fields)`` that writes to *stream*.

    A field called ``error`` that holds an exception is written as its type and place, not its text: the
    text of an unexpected error may hold anything.
    """
    import structlog

    from km_core.audit import redact_processor

    logger = structlog.wrap_logger(
        structlog.WriteLogger(stream),
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact_processor,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.BoundLogger,
    )

    def log(event: str, /, **fields: Any) -> None:
        error = fields.get("error")
        if isinstance(error, BaseException):
            fields["error"] = type(error).__name__
            frame = error.__traceback__
            while frame is not None and frame.tb_next is not None:
                frame = frame.tb_next
            if frame is not None:
                fields["at"] = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
        logger.info(event, **fields)

    return log
