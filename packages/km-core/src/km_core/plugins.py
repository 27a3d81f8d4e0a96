"""
Discovery and use of plugins.

Entry points of the group ``km.plugins`` name modules with hook implementations; the entry point's name
is the plugin's name.  Every answer is attributed: an error names the plugin, its distribution and its
version.  Nothing here imports a plugin before it is asked for.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy
from attrs import define, field, frozen

from km_core import KM_PLUGIN_API
from km_core.errors import KmError, PluginError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from km_core.control.protocols import ControlPlaneOffer
    from km_core.control.substrate import Substrate
    from km_core.plan import PlanAdditions, SandboxPlan
    from km_core.profile.kinds import PluginSection
    from km_core.types import Claim, DoctorCheck, EgressGroup, Meter, Problem, Sidecar

GROUP = "km.plugins"
T = TypeVar("T")
_OFFER_KEYS: dict[str, Callable[[Any], Any]] = {
    "km_enforcers": lambda offer: offer,
    "km_profile_sections": lambda offer: offer.key,
}
"""How an offer is called, for the hooks whose offers have no ``name``."""


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
    """The loaded plugins, asked hook by hook."""

    manager: pluggy.PluginManager
    infos: tuple[PluginInfo, ...] = ()
    _disabled: dict[str, PluginError] = field(factory=dict)

    @property
    def failures(self) -> tuple[PluginError, ...]:
        """Plugins that failed to load or raised when they were asked for their offers."""
        return tuple(self._disabled.values())

    def substrates(self) -> dict[str, Substrate]:
        """Return substrates by name."""
        return self._offers("km_substrates", lambda offer: offer.name)

    def meters(self) -> dict[str, Meter]:
        """Return meters by provider name; two meters on one host are refused."""
        offers: dict[str, Meter] = self._offers("km_meters", lambda offer: offer.name)
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
        return self._offers("km_sidecars", lambda offer: offer.name)

    def enforcers(self) -> dict[str, str]:
        """Return enforcement modes."""
        return self._offers("km_enforcers", lambda offer: offer)

    def control_planes(self) -> dict[str, ControlPlaneOffer]:
        """Return control planes by name."""
        return self._offers("km_control_planes", lambda offer: offer.name)

    def egress_groups(self) -> dict[str, EgressGroup]:
        """Return egress groups by name (``@python-packages``)."""
        return self._offers("km_egress_groups", lambda offer: offer.name)

    def doctor_checks(self) -> dict[str, DoctorCheck]:
        """Return health checks by name."""
        return self._offers("km_doctor_checks", lambda offer: offer.name)

    def claims(self) -> tuple[Claim, ...]:
        """Return every plugin's claims; an exception is an error."""
        return tuple(claim for _, claim in self.attributed_claims())

    def attributed_claims(self) -> tuple[tuple[str, Claim], ...]:
        """Return every claim with the name of the plugin that makes it; an exception is an error."""
        answers = self._answers("km_field_claims", {}, strict=True)
        return tuple((plugin, item) for plugin, items in answers for item in items)

    def profile_sections(self) -> tuple[PluginSection, ...]:
        """Return the profile sections that plugins own."""
        offers: dict[str, PluginSection] = self._offers("km_profile_sections", lambda offer: offer.key)
        return tuple(offers.values())

    def owners(self, hook: str) -> dict[str, str]:
        """
        Return the name of the plugin behind each offer of an offer hook, by the offer's name.

        Args:
            hook: ``km_sidecars``, ``km_enforcers``, ``km_profile_sections`` …
        """
        key = _OFFER_KEYS.get(hook, lambda offer: offer.name)
        return {name: plugin for name, (plugin, _) in self._attributed(hook, key).items()}

    def additions(
        self, draft: SandboxPlan, profile: Mapping[str, Any]
    ) -> tuple[tuple[str, PlanAdditions], ...]:
        """Return each plugin's additions to a plan, by plugin name; an exception is an error."""
        arguments = {"draft": draft, "profile": profile}
        answers = self._answers("km_compile", arguments, strict=True, single=True)
        return tuple((plugin, item) for plugin, items in answers for item in items)

    def validate(self, profile: Mapping[str, Any], substrate: str) -> tuple[Problem, ...]:
        """Return every plugin's problems with a merged profile; an exception is an error."""
        answers = self._answers(
            "km_validate_profile", {"profile": profile, "substrate": substrate}, strict=True
        )
        return tuple(item for _, items in answers for item in items)

    def info(self, name: str) -> PluginInfo | None:
        """Return what is known of a plugin."""
        return next((info for info in self.infos if info.name == name), None)

    def _offers(self, hook: str, key: Callable[[Any], Any]) -> dict[str, Any]:
        return {name: item for name, (_, item) in self._attributed(hook, key).items()}

    def _attributed(self, hook: str, key: Callable[[Any], Any]) -> dict[str, tuple[str, Any]]:
        found: dict[str, tuple[str, Any]] = {}
        for plugin, items in self._answers(hook, {}, strict=False):
            for item in items:
                name = key(item)
                if not isinstance(name, str) or name == "":
                    raise self._error(plugin, f"{hook} returned an offer without a name")
                if name in found:
                    other = self._describe(found[name][0])
                    raise self._error(
                        plugin, f"{name!r} is already offered by {other}", hint="uninstall one of the two"
                    )
                found[name] = (plugin, item)
        return dict(sorted(found.items()))

    def _answers(
        self, hook: str, arguments: Mapping[str, Any], *, strict: bool, single: bool = False
    ) -> Iterable[tuple[str, list[Any]]]:
        caller = getattr(self.manager.hook, hook)
        for impl in sorted(caller.get_hookimpls(), key=lambda impl: impl.plugin_name):
            if impl.plugin_name in self._disabled:
                continue
            try:
                answer = impl.function(*(arguments[name] for name in impl.argnames))
                items = [] if answer is None else [answer] if single else list(answer)
            except Exception as error:
                failure = self._error(impl.plugin_name, f"{hook} failed: {_brief(error)}")
                if strict:
                    raise failure from error
                self._disabled[impl.plugin_name] = failure
                _warn(failure)
                continue
            yield impl.plugin_name, items

    def _describe(self, plugin: str) -> str:
        info = self.info(plugin)
        return f"plugin {plugin} ({info.distribution} {info.version})" if info else f"plugin {plugin}"

    def _error(self, plugin: str, what: str, *, hint: str = "") -> PluginError:
        info = self.info(plugin)
        return PluginError(
            what,
            plugin=plugin,
            distribution=info.distribution if info else "",
            version=info.version if info else "",
            hint=hint,
        )


def new_manager() -> pluggy.PluginManager:
    """Return an empty manager that knows every hook specification."""
    from km_core.hookspecs import FAMILIES

    manager = pluggy.PluginManager("km")
    for family in FAMILIES:
        manager.add_hookspecs(family)
    if os.environ.get("KM_TRACE_PLUGINS") == "1":
        manager.trace.root.setwriter(sys.stderr.write)
        manager.enable_tracing()
    return manager


@cache
def load_plugins() -> PluginRegistry:
    """
    Load the installed plugins, once per process.

    ``KM_BLOCK_PLUGINS=a,b`` leaves plugins out by name.  A plugin that cannot be imported or states
    another API number is recorded and left out; commands that need it say so.

    Raises:
        PluginError: two distributions register one name, or a hook is misspelt.
    """
    blocked = {name.strip() for name in os.environ.get("KM_BLOCK_PLUGINS", "").split(",") if name.strip()}
    manager = new_manager()
    infos: list[PluginInfo] = []
    disabled: dict[str, PluginError] = {}
    for entry in _entries():
        distribution, version = _origin(entry)
        if entry.name in blocked:
            infos.append(
                PluginInfo(entry.name, distribution, version, entry.value, "blocked", "KM_BLOCK_PLUGINS")
            )
            continue
        try:
            hooks = _register(manager, entry)
        except PluginError as failure:
            infos.append(PluginInfo(entry.name, distribution, version, entry.value, "failed", failure.what))
            disabled[entry.name] = failure
            continue
        infos.append(PluginInfo(entry.name, distribution, version, entry.value, "ok", hooks=hooks))
    return PluginRegistry(manager, tuple(infos), disabled)


def _entries() -> list[EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            first, second = _origin(other), _origin(entry)
            raise PluginError(
                f"the name {entry.name!r} is registered twice: by {' '.join(first)} and by {' '.join(second)}",
                plugin=entry.name,
                hint="uninstall one of the two",
            )
        found[entry.name] = entry
    return [found[name] for name in sorted(found)]


def _register(manager: pluggy.PluginManager, entry: EntryPoint) -> tuple[str, ...]:
    distribution, version = _origin(entry)

    def failed(what: str, hint: str = "") -> PluginError:
        return PluginError(what, plugin=entry.name, distribution=distribution, version=version, hint=hint)

    try:
        module = entry.load()
    except Exception as error:
        raise failed(f"cannot be imported: {_brief(error)}", f"reinstall {distribution}") from error
    api = getattr(module, "KM_PLUGIN_API", None)
    if api != KM_PLUGIN_API:
        raise failed(
            f"states plugin API {api}, this km has {KM_PLUGIN_API}",
            "install a version of the plugin made for this km",
        )
    try:
        manager.register(module, name=entry.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        manager.unregister(name=entry.name)
        raise failed(f"has a hook that km does not know: {_brief(error)}") from error
    callers = manager.get_hookcallers(module) or []
    return tuple(sorted(caller.name for caller in callers))


def _origin(entry: EntryPoint) -> tuple[str, str]:
    dist = entry.dist
    return (dist.name, dist.version) if dist is not None else ("unknown distribution", "")


def _brief(error: BaseException) -> str:
    if isinstance(error, KmError):
        return str(error)
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _warn(error: PluginError) -> None:
    sys.stderr.write(f"warning: {error}\n")
