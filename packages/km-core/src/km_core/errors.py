"""
The error family of km.

Every error carries fields, not a formatted sentence, so that one place can print it for people and
another can emit it as JSON.  Each `code` has a heading in ``docs/errors.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class KmError(Exception):
    """
    Something km can explain.

    Args:
        what: what went wrong, one sentence without a trailing full stop.
        where: the place: a file position, a dotted path, a sandbox id, a host.
        why: the cause as far as it is known.
        hint: what to do about it.
        code: stable identifier, kebab-case; defaults to the class's own.
    """

    code = "error"
    exit_code = 1

    def __init__(
        self, what: str, *, where: str = "", why: str = "", hint: str = "", code: str | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.why = why
        self.hint = hint
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        """Return the one-line form: where, what, why."""
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head} ({self.why})" if self.why else head

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form used on stdout with ``--json`` and on the control socket."""
        return {
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "hint": self.hint,
        }


class UsageError(KmError):
    """The command line or the configuration cannot be understood (exit 2)."""

    code = "usage"
    exit_code = 2


class ConfigError(UsageError):
    """The configuration file is wrong (exit 2)."""

    code = "config"


class NotConfirmedError(KmError):
    """The operator declined, or could not be asked (exit 3)."""

    code = "not-confirmed"
    exit_code = 3


class GuardError(KmError):
    """A guard refuses: a lock, a limit, a maximum (exit 4)."""

    code = "guard"
    exit_code = 4


class NotFoundError(KmError):
    """A reference does not resolve (exit 5)."""

    code = "not-found"
    exit_code = 5


class ProfileError(KmError):
    """A profile is invalid; carries every problem found, not the first."""

    code = "profile"

    def __init__(self, what: str, *, problems: Sequence[Any] = (), **rest: Any) -> None:
        super().__init__(what, **rest)
        self.problems = tuple(problems)


class PlanError(KmError):
    """A valid profile cannot be turned into a plan for this substrate."""

    code = "plan"


class ProvisionError(KmError):
    """A substrate could not do what was asked."""

    code = "provision"


class PolicyDenied(KmError):  # noqa: N818 - the field's word, fixed by DESIGN section 10
    """Policy refuses an access."""

    code = "policy-denied"


class BudgetExceeded(KmError):  # noqa: N818 - the field's word, fixed by DESIGN section 10
    """A budget has no room for the call."""

    code = "budget-exceeded"


class ControlError(KmError):
    """The control plane answered with an error or did not answer."""

    code = "control"


class ControlUnavailableError(ControlError):
    """The control plane cannot be reached; callers fail closed."""

    code = "control-unavailable"


class AuditError(KmError):
    """An audit chain is broken or cannot be written."""

    code = "audit"


class PluginError(KmError):
    """A plugin failed; names the plugin, its distribution and version."""

    code = "plugin"

    def __init__(
        self, what: str, *, plugin: str, distribution: str = "", version: str = "", **rest: Any
    ) -> None:
        where = rest.pop("where", "") or f"plugin {plugin}" + (
            f" ({distribution} {version})" if distribution else ""
        )
        super().__init__(what, where=where, **rest)
        self.plugin = plugin
        self.distribution = distribution
        self.version = version


class InternalError(KmError):
    """Something that km did not expect: a fault of its own."""

    code = "internal"


_BY_CODE: dict[str, type[KmError]] = {
    cls.code: cls
    for cls in (
        KmError,
        UsageError,
        ConfigError,
        NotConfirmedError,
        GuardError,
        NotFoundError,
        PlanError,
        ProvisionError,
        PolicyDenied,
        BudgetExceeded,
        ControlError,
        ControlUnavailableError,
        AuditError,
    )
}


def from_dict(data: Mapping[str, Any]) -> KmError:
    """Rebuild an error that crossed the control socket; an unknown code becomes `ControlError`."""
    code = str(data.get("code", "control"))
    cls = _BY_CODE.get(code, ControlError)
    return cls(
        str(data.get("what", "unknown error")),
        where=str(data.get("where", "")),
        why=str(data.get("why", "")),
        hint=str(data.get("hint", "")),
        code=code,
    )
