"""What ``km allow`` takes: an entry of ``allowedHosts``, in the one spelling it is kept in."""

from __future__ import annotations

from km_core.errors import UsageError
from km_core.plan import Grant, HostRule
from km_core.policy.grants import grant_rule
from km_core.profile import grammar
from km_core.profile.kinds import RuleError

_PREFIX = {"suffix": ".", "subdomains": "*."}


def grant_entry(text: str) -> str:
    """
    Return an entry in its canonical spelling, so that it is found again when it is taken back.

    Args:
        text: a name, ``.name``, ``*.name`` or an address, each also with ``:PORT``; or a CIDR.

    Raises:
        UsageError: it is no entry of ``allowedHosts``, or one that only a profile may hold.
    """
    if text.startswith(("*:", "@")) or text == "*":
        raise UsageError(f"{text!r} is not granted for a time", hint="name hosts, or change the profile")
    try:
        grammar.host(text)
        rule = grant_rule(Grant(text, 0.0))
    except RuleError as error:
        raise UsageError(f"{text!r} {error}", hint=error.hint) from None
    except ValueError as error:
        raise UsageError(f"{text!r} {error}") from None
    port = f":{rule.ports[0]}" if rule.ports else ""
    if isinstance(rule, HostRule):
        return _PREFIX.get(rule.kind, "") + rule.pattern + port
    address, _, length = rule.cidr.partition("/")
    if not port:
        return rule.cidr if ":" in address or length != "32" else address
    return f"[{address}]{port}" if ":" in address else f"{address}{port}"
