"""
The quick start's main job, step by step, through the real ``km`` command.

Each step compares what happened with what was promised and writes the result down; the job goes on
where it can, so that one run shows everything that is wrong.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from attrs import define, field

from demo.command import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from demo.command import Km
    from demo.standins import StandIns
    from demo.traces import Traces

ALIAS = "quickstart"
TOP_UP_USD = "0.05"
MOST_CALLS = 40


@define
class Facts:
    """What the report is made of."""

    sandbox: dict[str, Any] = field(factory=dict)
    doors: list[dict[str, Any]] = field(factory=list)
    calls: list[dict[str, Any]] = field(factory=list)
    calls_after: list[dict[str, Any]] = field(factory=list)
    decisions: list[dict[str, Any]] = field(factory=list)
    budget: dict[str, Any] = field(factory=dict)
    audit: dict[str, Any] = field(factory=dict)
    checks: list[tuple[str, bool, str]] = field(factory=list)

    def check(self, promise: str, kept: object, detail: str = "") -> bool:
        """Write down whether a promise was kept; *detail* explains a broken one."""
        self.checks.append((promise, bool(kept), detail))
        return bool(kept)

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return bool(self.checks) and all(kept for _, kept, _ in self.checks)


@define
class Journey:
    """
    The main job.

    Args:
        km: the command.
        standins: what the sandbox talks to.
        secrets: name to value of the keys the gate injects.
        say: prints one progress line.
    """

    km: Km
    standins: StandIns
    secrets: dict[str, str]
    traces: Traces
    say: Callable[[str], None]
    facts: Facts = field(factory=Facts)

    def run(self, profile: Path, *, substrate: str) -> None:
        """
        Do the whole job; the sandbox still runs afterwards.

        Raises:
            CommandError: a command that must work did not.
        """
        for name, value in self.secrets.items():
            self.km.run("secrets", "set", name, stdin=value)
        self._create(profile, substrate)
        self._doors()
        try:
            self._spend()
            self._top_up()
        except CommandError as error:
            self.facts.check("the agent's calls end in an orderly way", kept=False, detail=str(error))
        self._evidence()

    def destroy(self) -> None:
        """Destroy the sandbox and check its audit chain once more, now that nothing writes to it."""
        started = time.monotonic()
        self.km.run("destroy", self.sandbox_id, "--yes")
        self.facts.check("the sandbox is destroyed", self.km.data("list") == [])
        with contextlib.suppress(CommandError):
            self.facts.audit = self.km.data("audit", "verify", self.sandbox_id)
        self.facts.check(
            "the audit chains verify after destroy", self.facts.audit.get("ok"), str(self.facts.audit)
        )
        self.say(f"destroyed ({time.monotonic() - started:.1f} s)")

    @property
    def sandbox_id(self) -> str:
        """The sandbox's id; empty before it was created."""
        return str(self.facts.sandbox.get("id", ""))

    def _create(self, profile: Path, substrate: str) -> None:
        started = time.monotonic()
        self.facts.sandbox = self.km.data("create", str(profile), "--alias", ALIAS, "--substrate", substrate)
        self.facts.sandbox = self.km.data("status", ALIAS)
        self.traces.note(self.sandbox_id)
        self.facts.check(
            "the sandbox runs", self.facts.sandbox["state"] == "running", str(self.facts.sandbox)
        )
        self.km.run("exec", ALIAS, "--", "sh", "-c", "cat > origin-ca.pem", stdin=self.standins.ca_pem)
        self.say(
            f"sandbox {self.sandbox_id} on {substrate} ({time.monotonic() - started:.1f} s): {self.traces.size}"
        )

    def _doors(self) -> None:
        started = time.monotonic()
        self.facts.doors = list(self.km.lines("exec", ALIAS, "--", "python3", "agent.py", "doors"))
        for door in self.facts.doors:
            wanted = door["door"] == "allowed"
            promise = f"{door['door']}: {door['url']} is {'reached' if wanted else 'refused'}"
            self.facts.check(promise, door["reached"] is wanted, door["detail"])
            self.say(f"{'allowed' if door['reached'] else 'refused'}  {door['door']:<24} {door['url']}")
        self.facts.check("the agent tried every door", len(self.facts.doors) == 5, str(self.facts.doors))
        asked = self.standins.names.queries
        self.facts.check(
            "a denied name is never asked for outside", asked["www.example.org"] == 0, str(asked)
        )
        self.facts.check(
            "the rebinding name was really resolved", asked["rebind.example.net"] > 0, str(asked)
        )
        self.say(f"five doors tried ({time.monotonic() - started:.1f} s)")

    def _spend(self) -> None:
        self.facts.calls = self._agent_spends(MOST_CALLS)
        last = self.facts.calls[-1] if self.facts.calls else {}
        refusal = last.get("refusal", {})
        self.facts.check(
            "calls go through until the ceiling", len(self.facts.calls) > 1, str(self.facts.calls)
        )
        self.facts.check("the ceiling stops the agent with 403", last.get("status") == 403, str(last))
        self.facts.check(
            "the refusal is in the provider's own shape", "message" in refusal.get("error", {}), str(last)
        )
        self.facts.check("the refusal says how to go on", "top_up" in refusal.get("km", {}), str(last))
        spent = self._ai()
        self.facts.check(
            "the ledger is at or below the ceiling", spent["spent_nusd"] <= spent["limit_nusd"], str(spent)
        )
        self.say(f"the ceiling of ${spent['limit_nusd'] / 1e9:.2f} stopped call {len(self.facts.calls)}")

    def _top_up(self) -> None:
        self.km.run("budget", "add", ALIAS, "--ai", TOP_UP_USD)
        self.facts.calls_after = self._agent_spends(2)
        went_on = [call["status"] for call in self.facts.calls_after] == [200, 200]
        self.facts.check("after the top-up the agent goes on", went_on, str(self.facts.calls_after))
        self.say(f"topped up by ${TOP_UP_USD}: the agent goes on")

    def _agent_spends(self, most: int) -> list[dict[str, Any]]:
        providers = ",".join(sorted(name.removesuffix("-api-key") for name in self.secrets))
        calls = []
        for call in self.km.lines("exec", ALIAS, "--", "python3", "agent.py", "spend", providers, str(most)):
            calls.append(call)
            kind = "stream" if call["stream"] else "plain"
            clamped = f", output clamped: {call['clamped']}" if call["clamped"] else ""
            self.say(f"{call['status']}      {call['call']} ({kind}{clamped})")
        return calls

    def _evidence(self) -> None:
        facts = self.facts
        facts.budget = self.km.data("status", ALIAS)["budget"]
        ai = facts.budget["ai"]
        facts.check(
            "the ledger is at or below the raised ceiling", ai["spent_nusd"] <= ai["limit_nusd"], str(ai)
        )
        self._credentials()
        facts.decisions = self.km.data("audit", "show", ALIAS)
        for host in ("www.example.org", "198.51.100.7", "rebind.example.net", "metadata.example.net"):
            found = [r for r in denials(facts.decisions) if host in {r.get("name"), r.get("address")}]
            facts.check(
                f"the audit log holds the refusal of {host}, with its rule", found and found[0].get("rule")
            )
        facts.audit = self.km.data("audit", "verify", ALIAS)
        facts.check("the audit chains verify while it runs", facts.audit.get("ok"), str(facts.audit))
        self.traces.note(self.sandbox_id)

    def _credentials(self) -> None:
        """The keys reached the provider and never stood inside."""
        inside = self.km.run(
            "exec",
            ALIAS,
            "--",
            "sh",
            "-c",
            "env; cat /proc/[0-9]*/environ 2>/dev/null; cat -- * .[a-z]*",
            check=False,
        )
        leaked = [name for name, value in self.secrets.items() if value in inside]
        self.facts.check("no key stands inside", not leaked, ", ".join(leaked))
        if self.standins.ai is None:
            return
        calls = self.standins.ai.calls
        passed = [call for call in self.facts.calls + self.facts.calls_after if call["status"] == 200]
        self.facts.check(
            "exactly the granted calls reached the provider",
            len(calls) == len(passed),
            f"{len(calls)}, {len(passed)}",
        )
        known = set(self.secrets.values())
        self.facts.check(
            "every call carried the key that the gate added", all(c.credential in known for c in calls)
        )
        models = self.facts.budget["ai"]["models"]
        reported = sum(call.reply.output_tokens for call in calls)
        booked = sum(model["output_tokens"] for model in models)
        self.facts.check(
            "the ledger holds the tokens the provider reported", reported == booked, f"{reported}, {booked}"
        )

    def _ai(self) -> dict[str, Any]:
        data: dict[str, Any] = self.km.data("status", ALIAS)["budget"]["ai"]
        return data


def denials(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the refusals among audit records."""
    return [record for record in records if record.get("verdict") == "deny"]
