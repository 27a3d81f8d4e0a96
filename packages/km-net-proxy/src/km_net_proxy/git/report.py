"""
Refusals that git, git-lfs and API clients show to the person at the keyboard.

Git prints the text of a refused discovery as ``remote:`` lines, and of a refused push the reason beside
each ref (gitprotocol-pack(5), "Report Status"); API clients print the member ``message``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from attrs import frozen

from km_net_proxy.git.pktline import band, pkt
from km_net_proxy.http.refusal import BLOCKED, denial_fields, printable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from km_core.types import Verdict
    from km_net_proxy.git.commands import Command

_MAX_REASON = 200


@frozen
class Denial:
    """
    What is denied, to whom.

    Attributes:
        verdict: the denial.
        sandbox: id of the sandbox.
        host: GitHub's host.
        repo: ``owner/name``, or empty.
        ref: full ref, or empty.
        writes: whether it would have written.
    """

    verdict: Verdict
    sandbox: str
    host: str
    repo: str = ""
    ref: str = ""
    writes: bool = False

    @property
    def code(self) -> str:
        """The code of the JSON form."""
        if self.ref:
            return "ref_not_allowed"
        return "repo_not_allowed" if self.verdict.rule == "default-deny" and self.repo else "git_not_allowed"

    def lines(self) -> list[str]:
        """Return the lines for a person."""
        shown = [("sandbox", self.sandbox), ("host", self.host)]
        shown += [("repo", self.repo)] if self.repo else []
        shown += [("ref", self.ref)] if self.ref else []
        shown += [
            ("layer", self.verdict.layer),
            ("rule", self.verdict.rule),
            ("reason", self.verdict.reason),
            ("next", self._next()),
        ]
        return [BLOCKED, *(f"{name + ':':<8} {printable(text)}" for name, text in shown)]

    def _next(self) -> str:
        if not self.repo:
            return f"`km explain egress PROFILE https://{self.host}/…` shows the decision"
        ask = f"`km explain git PROFILE {'push' if self.writes else 'fetch'} {self.repo}"
        ask += f" --ref {self.ref}` shows the decision" if self.ref else "` shows the decision"
        if self.verdict.rule != "default-deny":
            return ask
        entry = self.ref.removeprefix("refs/heads/") or self.repo
        field = "allowedRefs" if self.ref else "allowedRepos"
        if not self.ref and self.writes and "allowedRefs" in self.verdict.reason:
            return f"the operator can add refs to spec.sourceAccess.github.allowedRefs; {ask}"
        return f"the operator can add {entry} to spec.sourceAccess.github.{field}; {ask}"

    def page(self) -> bytes:
        """Return the plain text form."""
        head, *rest = self.lines()
        return "\n".join([head, "", *rest, ""]).encode()

    def fields(self) -> tuple[tuple[str, str], ...]:
        """Return the header fields, for clients that do not show bodies."""
        said, _ = denial_fields(self.verdict, sandbox=self.sandbox, target=f"{self.host}:443")
        return said, ("X-Km-Next", printable(self._next()).encode("ascii", "replace").decode("ascii"))

    def document(self) -> bytes:
        """Return the JSON form (spec/network.md section 4.2)."""
        members = {
            "error": self.code,
            "message": f"{BLOCKED}: {printable(self.verdict.reason)}; {printable(self._next())}",
            "repo": self.repo,
            "ref": self.ref,
            "reason": printable(self.verdict.reason),
            "rule": printable(self.verdict.rule),
            "sandbox": self.sandbox,
        }
        return json.dumps({name: value for name, value in members.items() if value}).encode()


def reports(capabilities: frozenset[str]) -> bool:
    """Say whether a client understands a report on its push."""
    return not capabilities.isdisjoint({"report-status", "report-status-v2"})


def push_report(
    denial: Denial, commands: Sequence[Command], denied: Mapping[str, str], capabilities: frozenset[str]
) -> bytes:
    """
    Return the answer to a push of which nothing was done.

    Args:
        denial: of the first denied ref, for the person.
        commands: the push's.
        denied: reason by denied ref.
        capabilities: the client's.
    """
    report = pkt(b"unpack ok\n")
    for command in commands:
        reason = denied.get(command.ref, "km: not done, another ref of this push is refused")
        report += pkt(f"ng {command.ref} {printable(reason, _MAX_REASON)}\n".encode())
    report += b"0000"
    if "side-band-64k" not in capabilities:
        return report
    words = "".join(f"{line}\n" for line in denial.lines()).encode()
    return band(2, words) + band(1, report) + b"0000"
