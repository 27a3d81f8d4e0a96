"""
The wire between km's processes: one JSON object per line over a Unix socket.

Request ``{"id": N, "op": NAME, "args": {...}}``, answer ``{"id": N, "ok": true, "result": ...}`` or
``{"id": N, "ok": false, "error": {code, what, where, why, hint}}``.  A sandbox's socket wants
``{"op": "hello", "args": {"token": ...}}`` first; the operator's goes by peer credentials.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
from typing import TYPE_CHECKING, Any, Self

from km_core.errors import ControlUnavailableError, KmError, from_dict

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINE = 16 * 1024 * 1024
"""Longest line either side accepts, in bytes."""


class ControlClient:
    """
    A blocking client; not thread-safe.

    Args:
        path: the socket.
        token: the sandbox's token, for a sandbox socket.
        timeout_s: how long an answer may take.
    """

    def __init__(self, path: Path, *, token: str = "", timeout_s: float = 30.0) -> None:
        self._path = path
        self._token = token
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._buffer = b""
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            self._buffer = b""

    def call(self, op: str, /, **args: Any) -> Any:
        """
        Send one request and wait for its answer.

        Raises:
            ControlUnavailableError: nobody answers, in time or at all.
            KmError: the error the other side answered with.
        """
        try:
            if self._sock is None:
                self._connect()
            return self._exchange(op, args)
        except (OSError, ValueError) as error:
            self.close()
            raise ControlUnavailableError(
                "the control plane does not answer", where=str(self._path), why=str(error)
            ) from error
        except KmError:
            raise
        except BaseException:
            # Cut off between question and answer: on this connection the next answer would be the last
            # question's.
            self.close()
            raise

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._buffer = b""
        if self._token:
            self._exchange("hello", {"token": self._token})

    def _exchange(self, op: str, args: dict[str, Any]) -> Any:
        if self._sock is None:  # pragma: no cover - callers connect first
            raise OSError("not connected")
        number = next(self._ids)
        # A server that refuses us answers why and closes; its answer can be read though ours cannot be sent.
        with contextlib.suppress(BrokenPipeError):
            self._sock.sendall(encode({"id": number, "op": op, "args": args}))
        while b"\n" not in self._buffer:
            chunk = self._sock.recv(65536)
            if not chunk:
                raise OSError("the connection was closed")
            self._buffer += chunk
            if len(self._buffer) > MAX_LINE:
                raise ValueError("the answer is too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        # A refusal before the request was read carries no number.
        if not isinstance(answer, dict) or answer.get("id") not in {number, None}:
            raise ValueError("the answer is to another question")
        return result_of(answer)


def encode(message: dict[str, Any]) -> bytes:
    """Return one line of the wire."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def result_of(answer: dict[str, Any]) -> Any:
    """Return an answer's result or raise its error."""
    if answer.get("ok"):
        return answer.get("result")
    raise from_dict(answer.get("error") or {})
