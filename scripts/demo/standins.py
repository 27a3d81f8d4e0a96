"""What the quick start's sandbox talks to instead of the Internet, all on one address of this host."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from demo.ai import AiUpstream, Reply
from demo.names import NameServer
from demo.pki import Authority
from demo.serving import Origin, Server

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Any

ORIGIN_HOST = "www.example.com"
AI_HOSTS = ("api.anthropic.com", "api.openai.com")
ANSWER = " ".join(["one", "two", "three", "four", "five"] * 140)


class StandIns:
    """
    The origin, the AI provider and the name server.

    Args:
        directory: where certificates go.
        live: leave the AI provider out; its hosts are reached for real.
        host: address of this machine to listen on.
    """

    def __init__(self, directory: Path, *, live: bool = False, host: str = "127.0.0.1") -> None:
        self._stack = contextlib.ExitStack()
        self._authority = Authority(directory, "quick start stand-ins")
        self.origin = Server(Origin, self._authority.server_context(ORIGIN_HOST, host), host=host)
        self.ai = (
            None
            if live
            else AiUpstream(self._authority.server_context(*AI_HOSTS, host), _long_answer, host=host)
        )
        self.names = NameServer(
            {"rebind.example.net": [["127.0.0.1"]], "metadata.example.net": [["169.254.169.254"]]},
            host=host,
            forward=live,
        )

    def __enter__(self) -> Self:
        for server in (self.origin, self.ai, self.names):
            if server is not None:
                self._stack.enter_context(server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def ca_pem(self) -> str:
        """The authority that signed the stand-ins."""
        return self._authority.ca_pem.decode()

    def config(self) -> dict[str, Any]:
        """Return the content of ``config.yaml`` that leads there."""
        ca_file = str(self._authority.ca_file)
        upstreams = {ORIGIN_HOST: {"url": self.origin.url, "ca_file": ca_file}}
        if self.ai is not None:
            upstreams |= {host: {"url": self.ai.url, "ca_file": ca_file} for host in AI_HOSTS}
        return {"upstreams": upstreams, "upstream_dns": self.names.address}


def _long_answer(_api: str, _request: dict[str, Any]) -> Reply:
    return Reply(text=ANSWER, output_tokens=700, chunks=20)
