"""
Requests to GitHub's hosts: classified, judged by repository and ref, then carried out or refused.

Order per request (spec/network.md section 5): route, repository, the refs or the direction that the body
names, credential, forward.  No byte of a body leaves before its verdict.  Redirects go back to the
client, never followed; where they lead is judged when the client asks.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from km_core.errors import KmError
from km_core.policy.github import API, GITHUB_SECRET, SIGNED_HOSTS, Route, classify
from km_core.types import Verdict
from km_net_proxy.git.bodies import Hold, coding_of, document, encoded, pieces
from km_net_proxy.git.commands import CommandError, CommandList
from km_net_proxy.git.handed import digest
from km_net_proxy.git.members import batch, refs, source
from km_net_proxy.git.report import Denial, push_report, reports
from km_net_proxy.git.taps import HandingTap
from km_net_proxy.http.connections import HEAD_TIMEOUT_S, IDLE_TIMEOUT_S
from km_net_proxy.http.credentials import strip_fields, strip_query
from km_net_proxy.http.exchange import ClientBodyError, Exchange, UpstreamLostError, request_head
from km_net_proxy.http.head import CHUNKED, as_read
from km_net_proxy.http.refusal import printable
from km_net_proxy.http.scope import RequestRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from km_core.policy.repos import GitPolicy
    from km_net_proxy.git.commands import Command
    from km_net_proxy.http.head import RequestHead
    from km_net_proxy.http.scope import Target
    from km_net_proxy.http.session import Session

MAX_LFS = 4 << 20
"""Longest body of an LFS batch request, in bytes."""
MAX_API = 32 << 20
"""Longest body of an API request whose ref has to be read, in bytes."""
DRAIN = 2 << 30
"""
How much of a refused push is taken from its client, so that it reads the refusal, in bytes: as much as
GitHub itself would take.  A client that is cut off while it sends tries once more, with what it had left.
"""
DRAIN_CODED = 256 << 20
"""The same where a coding has to be taken off first, which costs more than it costs the client."""

_DECODED = frozenset({b"content-encoding", b"content-md5", b"digest"})
_WRITES = frozenset({"PUT", "POST"})
_KINDS = {
    "lfs-batch": b"application/vnd.git-lfs+json; charset=utf-8",
    "api-write": b"application/json; charset=utf-8",
    "graphql": b"application/json; charset=utf-8",
}
"""What the body of an operation is, whatever the client says."""
_PAGES = frozenset({"github.com", "raw.githubusercontent.com", "codeload.github.com"})
_MAX_SHOWN = 12
"""Digits of an object id in a record: enough to find it, and no secret by its looks."""


@frozen
class _Sending:
    """A judged body: bytes that are all there, or pieces that follow."""

    whole: bytes | None = None
    source: AsyncIterator[bytes] | None = None
    length: int | None = None


class GitRequests:
    """
    Serves requests to one of GitHub's hosts.

    Args:
        session: the client's.
        policy: the rules.
    """

    def __init__(self, session: Session, policy: GitPolicy) -> None:
        self._session = session
        self._gate = session.gate
        self._policy = policy

    async def serve(self, request: RequestHead, target: Target) -> bool:
        """Carry out or refuse one request; True when the connection can carry another."""
        host = target.authority.host
        route = classify(host, request.method, target.path)
        if isinstance(route, Verdict):
            return self._refuse(route, Route("unknown"), request, target)
        route, verdict = self._judged(route, request, target)
        if not verdict.allow:
            return self._refuse(verdict, route, request, target)
        try:
            with Hold(self._gate.room) as hold:
                if route.operation == "push":
                    return await self._push(route, request, target, hold)
                if route.operation == "lfs-batch":
                    return await self._lfs(route, verdict, request, target, hold=hold)
                if self._body_counts(route):
                    return await self._api(route, verdict, request, target, hold=hold)
        except ClientBodyError as error:
            denied = Verdict(False, "builtin:git-malformed", "git", str(error))
            return self._refuse(denied, route, request, target)
        self._record(verdict, target, f"{route.operation} {route.repo}".strip())
        return await self._send(route, request, target, _Sending())

    def _judged(self, route: Route, request: RequestHead, target: Target) -> tuple[Route, Verdict]:
        """Ask policy about a route, after what was handed out has told whose it is."""
        if route.operation == "signed":
            handed = self._gate.handed.find(target.authority.host, request.method, target.path)
            if handed is None:
                return route, self._policy.route(route)
            route = evolve(route, repo=handed.repo)
            # Judged again: the rules may have changed since the URL was given.
            verdict = self._policy.repository(handed.repo)
            pushes = self._policy.pushes()
            return route, pushes if request.method in _WRITES and not pushes.allow else verdict
        if route.repo_id:
            route = evolve(route, repo=self._gate.handed.repository(route.repo_id) or "")
        return route, self._policy.route(route)

    def _body_counts(self, route: Route) -> bool:
        write = route.write
        return write is not None and (write.heads or (bool(write.members) and self._policy.refs is not None))

    # -- bodies that name refs --------------------------------------------------------------------

    async def _push(self, route: Route, request: RequestHead, target: Target, hold: Hold) -> bool:
        """Read the list of refs, judge all of them, and only then let the push go."""
        session = self._session
        session.connection.extend(HEAD_TIMEOUT_S)
        body = pieces(session, request)
        wanted, held = CommandList(), []
        try:
            async for piece in body:
                hold.more(len(piece))
                held.append(piece)
                wanted.feed(piece)
                if wanted.done:
                    break
            else:
                raise CommandError("the list of refs breaks off")
        except CommandError as error:
            raise ClientBodyError(str(error)) from error
        answers = [(command, self._policy.ref(command.ref)) for command in wanted.commands]
        for command, answer in answers:
            self._record(answer, target, f"push {route.repo} {_shown(command)}")
        refused = [(command, answer) for command, answer in answers if not answer.allow]
        if refused:
            command, answer = refused[0]
            denial = self._denial(answer, route, target, ref=command.ref)
            denied = {command.ref: f"km: {answer.reason}" for command, answer in refused}
            return await self._refuse_push(denial, wanted, denied, request, body)
        if not answers:
            # Git's probe of a long push (http.postBuffer): a server that read on would find refs unjudged.
            if wanted.left or await anext(body, None) is not None:
                raise ClientBodyError("something follows a list without refs")
            request.length = 0
            self._record(self._policy.repository(route.repo), target, f"push {route.repo} (nothing yet)")
            return await self._send(route, request, target, _Sending(b"".join(held)))
        length = CHUNKED if coding_of(request) else request.length
        return await self._send(route, request, target, _Sending(None, _chained(held, body), length))

    async def _refuse_push(
        self,
        denial: Denial,
        wanted: CommandList,
        denied: dict[str, str],
        request: RequestHead,
        body: AsyncIterator[bytes],
    ) -> bool:
        """Take the rest of the push and throw it away, then say why it is refused, beside each ref."""
        if not reports(wanted.capabilities):
            raise RequestRefused(403, denial.page(), headers=denial.fields(), close=True)
        taken, most = 0, DRAIN_CODED if coding_of(request) else DRAIN
        async for piece in body:
            self._session.connection.extend(IDLE_TIMEOUT_S)
            taken += len(piece)
            if taken > most:
                break
        else:
            request.length = 0
        raise RequestRefused(
            200,
            push_report(denial, wanted.commands, denied, wanted.capabilities),
            content_type="application/x-git-receive-pack-result",
            close=request.length != 0,
        )

    async def _lfs(
        self, route: Route, verdict: Verdict, request: RequestHead, target: Target, *, hold: Hold
    ) -> bool:
        """Judge an LFS batch by its direction, and by its ref where refs are limited."""
        asked = batch(await document(self._session, request, MAX_LFS, hold))
        ref = ""
        if asked.direction == "upload":
            verdict = self._policy.pushes()
            if self._policy.refs is not None and verdict.allow:
                ref = asked.ref
                if not ref:
                    raise ClientBodyError("the LFS upload names no ref, and refs are limited")
                verdict = self._policy.ref(ref)
        if not verdict.allow:
            return self._refuse(verdict, route, request, target, ref=ref)
        self._record(verdict, target, f"lfs-{asked.direction} {route.repo} {printable(ref)}".strip())
        return await self._send(route, request, target, _Sending(encoded(asked.members)))

    async def _api(
        self, route: Route, verdict: Verdict, request: RequestHead, target: Target, *, hold: Hold
    ) -> bool:
        """Judge a write of the REST API by the refs, or the repository, that its body names."""
        if "?" in target.path:
            raise ClientBodyError("the body is judged, and the query could say something else")
        members = await document(self._session, request, MAX_API, hold)
        if route.write is not None and route.write.heads:
            verdict = source(self._policy, route.repo, members)
            if not verdict.allow:
                return self._refuse(verdict, route, request, target)
            self._record(verdict, target, f"{request.method} {route.repo} pull request")
        for ref in refs(route, members):
            verdict = self._policy.ref(ref)
            if not verdict.allow:
                return self._refuse(verdict, route, request, target, ref=ref)
            self._record(verdict, target, f"{request.method} {route.repo} {printable(ref)}")
        return await self._send(route, request, target, _Sending(encoded(members)))

    # -- answers ----------------------------------------------------------------------------------

    def _denial(self, verdict: Verdict, route: Route, target: Target, *, ref: str = "") -> Denial:
        writes = route.operation in {"push", "push-discovery", "upload", "api-write", "lfs-lock"}
        return Denial(verdict, self._gate.sandbox_id, target.authority.host, route.repo, ref, writes)

    def _refuse(
        self, verdict: Verdict, route: Route, request: RequestHead, target: Target, *, ref: str = ""
    ) -> bool:
        path = printable(target.path.partition("?")[0], 200)
        self._record(verdict, target, f"{request.method} {path} {printable(ref)}".strip())
        denial = self._denial(verdict, route, target, ref=ref)
        if target.authority.host in _PAGES and not route.operation.startswith("lfs"):
            raise RequestRefused(403, denial.page(), headers=denial.fields(), close=request.length != 0)
        kind = "application/vnd.git-lfs+json" if route.operation.startswith("lfs") else "application/json"
        raise RequestRefused(
            403,
            denial.document(),
            content_type=kind,
            headers=denial.fields(),
            close=request.length != 0,
        )

    def _record(self, verdict: Verdict, target: Target, detail: str) -> None:
        named = target.authority
        self._gate.evidence.decided(verdict, "git_request", name=named.host, port=named.port, detail=detail)

    # -- sending ----------------------------------------------------------------------------------

    async def _send(self, route: Route, request: RequestHead, target: Target, sending: _Sending) -> bool:
        session = self._session
        fields, own, path = await self._fields(route, request, target, sending)
        length = sending.length if sending.whole is None else len(sending.whole)
        head = request_head(request, path, target.host, fields, length=length, own=own)
        exchange = Exchange(
            session.connection,
            session.client,
            request,
            idle_s=IDLE_TIMEOUT_S,
            tap=HandingTap(self._gate.handed, route, api=target.authority.host == API),
            source=sending.source,
            sent_length=length,
        )
        upstream = await session.open(target)
        try:
            outcome, reusable = await exchange.run(upstream, head, sending.whole)
        except UpstreamLostError as error:
            upstream.stream.abort()
            return session.lost(error, started=exchange.started)
        except ClientBodyError as error:
            upstream.stream.abort()
            raise RequestRefused.error(400, "http_malformed", str(error), close=True) from error
        except BaseException:
            upstream.stream.abort()
            raise
        if outcome.status == 401:
            self._gate.secrets.doubt(GITHUB_SECRET)
        return await session.finish(upstream, outcome, reusable=reusable)

    async def _fields(
        self, route: Route, request: RequestHead, target: Target, sending: _Sending
    ) -> tuple[list[tuple[bytes, bytes]], tuple[tuple[bytes, bytes], ...], str]:
        """Return the client's fields without its credentials, the gate's own, and the path."""
        host = target.authority.host
        dropped: set[bytes] = set()
        if sending.whole is not None or sending.source is not None:
            dropped |= {b"expect"}
            dropped |= _DECODED if sending.whole is not None or coding_of(request) else set()
        fields = [field for field in request.fields if as_read(field[0]) not in dropped]
        own: tuple[tuple[bytes, bytes], ...] = ()
        kind = _KINDS.get(route.operation)
        if kind is not None:
            # Read as a form, or in another character set, the same bytes would say something else.
            fields = [field for field in fields if as_read(field[0]) != b"content-type"]
            own = ((b"Content-Type", kind),)
        if route.operation == "lfs-batch":
            # The answer is read for the URLs that it hands out.
            fields = [field for field in fields if field[0].lower() != b"accept-encoding"]
            own = (*own, (b"Accept-Encoding", b"identity"))
        if host in SIGNED_HOSTS:
            handed = self._gate.handed.find(host, request.method, target.path)
            given = request.index.get(b"authorization", b"")
            if handed is not None and given and digest(given) == handed.authorization:
                own = (*own, (b"Authorization", given))
            return strip_fields(fields, None), own, target.path
        return (
            strip_fields(fields, None),
            own + await self._credential(route, target),
            strip_query(target.path),
        )

    async def _credential(self, route: Route, target: Target) -> tuple[tuple[bytes, bytes], ...]:
        """Return the operator's credential, or nothing: then GitHub answers what anybody may read."""
        host = target.authority.host
        override = self._gate.dialer.overrides.get(host)
        if (route.operation == "open" and host != API) or (override is not None and not override.protected):
            return ()
        try:
            token = await self._gate.secrets.value(GITHUB_SECRET)
        except KmError as error:
            raise RequestRefused.error(
                503, "control_plane_unavailable", "the control plane cannot be reached", close=True
            ) from error
        if token is None:
            return ()
        token = token.strip()
        if not token.isascii() or not token.isprintable() or " " in token:
            raise RequestRefused.error(
                502, "credential_malformed", f"the secret {GITHUB_SECRET} is no token", close=True
            )
        if route.smart or route.operation.startswith("lfs") or host == "github.com":
            pair = base64.b64encode(b"x-access-token:" + token.encode("ascii"))
            return ((b"Authorization", b"Basic " + pair),)
        return ((b"Authorization", b"Bearer " + token.encode("ascii")),)


async def _chained(held: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while held:
        yield held.pop(0)
    async for piece in rest:
        yield piece


def _shown(command: Command) -> str:
    return f"{printable(command.ref)} {command.old[:_MAX_SHOWN]}..{command.new[:_MAX_SHOWN]}"
