"""The loaded plugins, asked hook by hook; every answer is checked before it is used."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from km_core.errors import KmError, PluginError
from km_core.plugins.calls import HookTimeoutError, brief, call
from km_core.plugins.offers import CONTRACTS
from km_core.plugins.ordering import in_order
from km_core.types.distribution import canonical_distribution

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pluggy

    from km_core.control.protocols import ControlPlaneOffer
    from km_core.control.steps import LifecycleStep
    from km_core.control.substrate import Substrate
    from km_core.plan import PlanAdditions, SandboxPlan
    from km_core.profile.kinds import PluginSection
    from km_core.types import (
        Agent,
        Claim,
        DoctorCheck,
        EgressGroup,
        InsideService,
        Meter,
        Problem,
        Sidecar,
    )

_LONGEST_STEP = 128
"""Characters of a step in the journal (``docs/internals.md``)."""


@frozen
class PluginInfo:
    """What ``km plugins list`` shows: *status* is ``ok``, ``blocked`` or ``failed`` with a *detail*."""

    name: str
    distribution: str
    version: str
    module: str
    status: str
    detail: str = ""
    hooks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "distribution": self.distribution,
            "version": self.version,
            "module": self.module,
            "status": self.status,
            "detail": self.detail,
            "hooks": list(self.hooks),
        }


@define
class PluginRegistry:
    """
    The loaded plugins.

    Hooks that *offer* are asked once; a plugin that fails there is disabled with everything it offers.
    Hooks that *collect* fail the operation that asks.  `failures` holds what went wrong.
    """

    manager: pluggy.PluginManager
    infos: tuple[PluginInfo, ...] = ()
    _disabled: dict[str, PluginError] = field(factory=dict)
    _failed_hooks: dict[str, str] = field(factory=dict)
    _asked: dict[str, list[tuple[str, list[Any]]]] = field(factory=dict)
    _printed: set[str] = field(factory=set)

    @property
    def failures(self) -> tuple[PluginError, ...]:
        """Plugins that failed to load or when they were asked for their offers."""
        return tuple(self._disabled.values())

    def substrates(self) -> dict[str, Substrate]:
        """Return substrates by name."""
        return self._offers("km_substrates")

    def meters(self) -> dict[str, Meter]:
        """Return meters by provider name; two meters on one host are refused."""
        # Asked anew each time: the hosts of a meter may stand in the configuration.
        self._asked.pop("km_meters", None)
        offers: dict[str, Meter] = self._offers("km_meters")
        owners: dict[str, str] = {}
        for name, meter in offers.items():
            for host in meter.hosts:
                if host in owners:
                    raise PluginError(
                        f"meters {owners[host]} and {name} both own {host}",
                        plugin=name,
                        hint="remove one of them",
                    )
                owners[host] = name
        return offers

    def sidecars(self) -> dict[str, Sidecar]:
        """Return runners by name."""
        return self._offers("km_sidecars")

    def enforcers(self) -> dict[str, str]:
        """Return enforcement modes."""
        return self._offers("km_enforcers")

    def control_planes(self) -> dict[str, ControlPlaneOffer]:
        """Return control planes by name."""
        return self._offers("km_control_planes")

    def egress_groups(self) -> dict[str, EgressGroup]:
        """Return egress groups by name (``@python-packages``)."""
        return self._offers("km_egress_groups")

    def doctor_checks(self) -> dict[str, DoctorCheck]:
        """Return health checks by name."""
        return self._offers("km_doctor_checks")

    def agents(self) -> dict[str, Agent]:
        """Return agent programs by name."""
        return self._offers("km_agents")

    def inside_services(self) -> dict[str, InsideService]:
        """
        Return services of the inside API by name.

        Raises:
            PluginError: two plugins offer one name, or one offers a name that the gate has itself.
        """
        from km_core.types.inside import GATE_SERVICES

        offers: dict[str, InsideService] = self._offers("km_inside_services")
        for name in sorted(GATE_SERVICES & set(offers)):
            plugin = self.owners("km_inside_services")[name]
            raise self.error(plugin, f"offers the inside service {name!r}, which the gate has itself")
        return offers

    def claims(self) -> tuple[Claim, ...]:
        """Return every plugin's claims; a failure is an error."""
        return tuple(claim for _, claim in self.attributed_claims())

    def attributed_claims(self) -> tuple[tuple[str, Claim], ...]:
        """Return every claim with the name of the plugin that makes it; a failure is an error."""
        answers = self._once("km_field_claims")
        return tuple((plugin, item) for plugin, items in answers for item in items)

    def profile_sections(self) -> tuple[PluginSection, ...]:
        """Return the profile sections that plugins own."""
        offers: dict[str, PluginSection] = self._offers("km_profile_sections")
        return tuple(offers.values())

    def additions(
        self, draft: SandboxPlan, profile: Mapping[str, Any]
    ) -> tuple[tuple[str, PlanAdditions], ...]:
        """Return each plugin's additions to a plan, by plugin name; a failure is an error."""
        answers = self._answers("km_compile", {"draft": draft, "profile": profile})
        return tuple((plugin, item) for plugin, items in answers for item in items)

    def validate(self, profile: Mapping[str, Any], substrate: str) -> tuple[Problem, ...]:
        """Return every plugin's problems with a merged profile; a failure is an error."""
        answers = self._answers("km_validate_profile", {"profile": profile, "substrate": substrate})
        return tuple(item for _, items in answers for item in items)

    def lifecycle_steps(
        self, plan: SandboxPlan, broken: list[PluginError] | None = None
    ) -> tuple[tuple[str, LifecycleStep], ...]:
        """
        Return the steps that plugins add to a sandbox's creation, in the order they act.

        Args:
            plan: what the sandbox is made from.
            broken: takes the failures of plugins whose steps are then left out; without it a failure is
                an error.

        Returns:
            ``(PLUGIN.NAME, step)`` pairs.
        """
        steps: dict[str, tuple[str, LifecycleStep]] = {}
        for plugin, items in self._answers("km_lifecycle_steps", {"plan": plan}, broken):
            for item in items:
                key = f"{plugin}.{item.name}"
                problem = ""
                if key in steps:
                    problem = f"returned two steps {item.name!r}"
                elif len(key) > _LONGEST_STEP:
                    problem = f"returned a step whose name {key!r} is longer than {_LONGEST_STEP} characters"
                if problem:
                    failure = self.error(plugin, f"km_lifecycle_steps {problem}")
                    if broken is None:
                        raise failure
                    broken.append(failure)
                    continue
                steps[key] = (plugin, item)
        ordered, cycle = in_order({key: step for key, (_, step) in steps.items()})
        if cycle:
            failure = self.error(
                steps[cycle[0]][0], f"the steps {' -> '.join(cycle)} wait for each other (after)"
            )
            if broken is None:
                raise failure
            broken.append(failure)
            ordered += sorted(set(steps) - set(ordered))
        return tuple((key, steps[key][1]) for key in ordered)

    def info(self, name: str) -> PluginInfo | None:
        """Return what is known of a plugin."""
        return next((info for info in self.infos if info.name == name), None)

    def owners(self, hook: str) -> dict[str, str]:
        """
        Return the name of the plugin behind each offer of an offer hook, by the offer's name.

        Args:
            hook: ``km_sidecars``, ``km_enforcers``, ``km_profile_sections`` …
        """
        return {name: plugin for name, (plugin, _) in self._attributed(hook).items()}

    def remedy(self, distribution: str) -> tuple[str, str]:
        """
        Say why nothing of a distribution is there, and what to do.

        Args:
            distribution: who would provide it (``km-substrate-ec2``).

        Returns:
            The reason, empty when it is simply not installed, and the hint.
        """
        wanted = canonical_distribution(distribution)
        for info in self.infos:
            if canonical_distribution(info.distribution) != wanted:
                continue
            failure = self._disabled.get(info.name)
            if failure is not None:
                why = f"{info.distribution} {info.version} is installed but failed to load: {failure.what}"
                return why, failure.hint or f"km plugins check {info.name}"
            if info.status == "blocked":
                why = f"{info.distribution} {info.version} is installed but blocked"
                return why, f"take {info.name} out of KM_BLOCK_PLUGINS"
        broken = sorted(self._disabled)
        why = f"failed plugins: {', '.join(broken)}" if broken else ""
        return why, f"install {distribution}"

    def refuse_broken(self, plan: SandboxPlan) -> None:
        """
        Raise when a plugin that a plan needs is broken here.

        Needed are those of the plan's requirements, and under a ceiling every meter: a host whose meter
        is gone must not pass unmetered.  A plugin that could not even be imported may have been one.

        Raises:
            PluginError: names the plugin, its distribution and what happened.
        """
        needed = {
            canonical_distribution(re.split(r"[<>=!~ ]", text, maxsplit=1)[0]) for text in plan.requirements
        }
        for name, failure in self._disabled.items():
            owners = {canonical_distribution(info.distribution) for info in self.infos if info.name == name}
            if owners & needed:
                what = f"is needed by this profile but failed to load: {failure.what}"
                raise self.error(name, what, hint=failure.hint or f"km plugins check {name}") from failure
            if plan.budget.ai_limit_nusd is not None and self._failed_hooks.get(name, "") in {
                "",
                "km_meters",
            }:
                what = (
                    f"failed to load and may meter a host that this profile has a ceiling for: {failure.what}"
                )
                hint = f"mend it (km plugins check {name}), or leave it out with KM_BLOCK_PLUGINS={name}"
                raise self.error(name, what, hint=hint) from failure

    def error(self, plugin: str, what: str, *, hint: str = "") -> PluginError:
        """Return an error that names a plugin, its distribution and its version."""
        info = self.info(plugin)
        return PluginError(
            what,
            plugin=plugin,
            distribution=info.distribution if info else "",
            version=info.version if info else "",
            hint=hint,
        )

    def _offers(self, hook: str) -> dict[str, Any]:
        return {name: item for name, (_, item) in self._attributed(hook).items()}

    def _attributed(self, hook: str) -> dict[str, tuple[str, Any]]:
        found: dict[str, tuple[str, Any]] = {}
        contract = CONTRACTS[hook]
        for plugin, items in self._once(hook):
            for item in items:
                name = contract.name_of(item)
                if name in found:
                    other = self._describe(found[name][0])
                    raise self.error(
                        plugin, f"{name!r} is already offered by {other}", hint="uninstall one of the two"
                    )
                found[name] = (plugin, item)
        return dict(sorted(found.items()))

    def _once(self, hook: str) -> list[tuple[str, list[Any]]]:
        """Ask a hook without arguments, or return what it answered before."""
        if hook not in self._asked:
            self._asked[hook] = list(self._answers(hook, {}))
        return [answer for answer in self._asked[hook] if answer[0] not in self._disabled]

    def _answers(
        self, hook: str, arguments: Mapping[str, Any], broken: list[PluginError] | None = None
    ) -> Iterator[tuple[str, list[Any]]]:
        """Ask every plugin, by name; *broken* takes failures that would otherwise end the operation."""
        contract = CONTRACTS[hook]
        caller = getattr(self.manager.hook, hook)
        for impl in sorted(caller.get_hookimpls(), key=lambda impl: impl.plugin_name):
            plugin = impl.plugin_name
            if plugin in self._disabled:
                continue
            given = {name: arguments[name] for name in impl.argnames}
            items, failure = self.ask(hook, plugin, impl.function, given)
            if failure is None:
                yield plugin, items
            elif broken is not None:
                broken.append(failure)
            elif contract.strict:
                raise failure
            else:
                self._disabled[plugin] = failure
                self._failed_hooks[plugin] = hook
                warn(failure)

    def ask(
        self, hook: str, plugin: str, function: Any, given: Mapping[str, Any]
    ) -> tuple[list[Any], PluginError | None]:
        """
        Call one implementation and check what it returned.

        Args:
            hook: its name.
            plugin: whose implementation it is.
            function: the implementation.
            given: the arguments it takes.

        Returns:
            What it returned, as a list; or an empty list and the failure.
        """
        contract = CONTRACTS[hook]

        def run() -> list[Any]:
            answer = function(**given)
            if answer is None and contract.single:
                return []
            if contract.single:
                items = [answer]
            elif isinstance(answer, str | bytes) or not hasattr(answer, "__iter__"):
                kind = "None" if answer is None else f"a {type(answer).__name__}"
                raise _WrongAnswerError(f"returned {kind} where an iterable is expected")
            else:
                items = list(answer)
            for item in items:
                complaint = contract.complaint(item)
                if complaint:
                    raise _WrongAnswerError(complaint)
            return items

        outcome = call(run, what=hook, plugin=plugin)
        if outcome.wrote and plugin not in self._printed:
            self._printed.add(plugin)
            warn(self.error(plugin, f"{hook} prints to standard output, which belongs to km"))
        if outcome.error is None:
            return outcome.value, None
        if isinstance(outcome.error, HookTimeoutError):
            hint = "give slow ones more time with KM_PLUGIN_TIMEOUT_S=SECONDS"
            failure = self.error(plugin, f"{hook} hangs: {outcome.error}", hint=hint)
        elif isinstance(outcome.error, _WrongAnswerError):
            failure = self.error(plugin, f"{hook} {outcome.error}", hint=f"km plugins check {plugin}")
        else:
            hint = outcome.error.hint if isinstance(outcome.error, KmError) else ""
            failure = self.error(plugin, f"{hook} failed: {brief(outcome.error)}", hint=hint)
        failure.__cause__ = outcome.error
        return [], failure

    def _describe(self, plugin: str) -> str:
        info = self.info(plugin)
        return f"plugin {plugin} ({info.distribution} {info.version})" if info else f"plugin {plugin}"


class _WrongAnswerError(Exception):
    """A hook returned something that its contract does not allow."""


def warn(error: PluginError) -> None:
    """Tell of a failure that does not end the command, on standard error."""
    hint = f"; {error.hint}" if error.hint else ""
    sys.stderr.write(f"warning: {error}{hint}\n")
