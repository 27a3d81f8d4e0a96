"""What a new distribution, its module, its plugin and what it offers are called."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec

from attrs import frozen

from km_core.errors import GuardError, UsageError
from km_core.types.distribution import canonical_distribution

KINDS = ("substrate", "enforcer", "notifier", "meter", "agent", "control-plane")
"""Kinds of plugins that there are templates for."""

_PREFIXES = {
    "substrate": ("substrate-",),
    "enforcer": ("net-", "enforcer-", "enforce-"),
    "notifier": ("notify-", "notifier-"),
    "meter": ("meter-",),
    "agent": ("agent-",),
    "control-plane": ("control-plane-", "control-"),
}
_PARTS = ("core", "embedded", "host", "aws", "net-proxy", "net-ebpf", "mail", "slack", "github", "console")
_SUBSTRATES = ("local", "docker", "ec2", "ecs")
_OURS = frozenset([*(f"km-{part}" for part in _PARTS), *(f"km-substrate-{name}" for name in _SUBSTRATES)])
_OFFERED = {
    "substrate": frozenset(_SUBSTRATES),
    "control-plane": frozenset({"embedded", "aws"}),
    "meter": frozenset({"anthropic", "openai"}),
}
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
"""A distribution's name (PEP 508)."""
_LONGEST = 60


@frozen
class Names:
    """
    The names of a new plugin.

    Attributes:
        dist: the distribution, in its canonical form (PEP 503).
        kind: one of `KINDS`.
        module: the import package.
        plugin: name of the entry point, by which km lists, blocks and traces the plugin.
        word: what it offers is called: the substrate in a profile, the agent on the command line.
    """

    dist: str
    kind: str
    module: str
    plugin: str
    word: str

    @property
    def class_prefix(self) -> str:
        """The word as the beginning of class names."""
        return "".join(part.capitalize() for part in self.word.split("-"))

    @property
    def variable(self) -> str:
        """Environment variable that configures the plugin."""
        return self.dist.upper().replace("-", "_")


def check_name(name: str, kind: str) -> Names:
    """
    Return the names of a new distribution called *name*.

    Raises:
        UsageError: it cannot be the name of a distribution, or of what it offers.
        GuardError: the name is km's own, or something installed has it.
    """
    if kind not in KINDS:
        raise UsageError(f"there are no templates for {kind!r}", hint="kinds: " + ", ".join(KINDS))
    if not _NAME.match(name) or len(name) > _LONGEST:
        raise UsageError(
            f"{name!r} cannot be the name of a distribution",
            why=f"at most {_LONGEST} letters, digits, dots, dashes and underscores, the first and last no sign",
            hint=f"for example km-{_PREFIXES[kind][0]}mine",
        )
    dist = canonical_distribution(name)
    if not dist.startswith("km-"):
        raise UsageError(
            f"{name!r} does not say that it belongs to km",
            why="distributions of km plugins begin with km-, so that people find them",
            hint=f"call it km-{dist}",
        )
    plugin = dist.removeprefix("km-")
    names = Names(dist, kind, dist.replace("-", "_"), plugin, _word(plugin, kind))
    if not names.module.isidentifier() or keyword.iskeyword(names.module):
        raise UsageError(f"{name!r} gives no module name", why=f"{names.module} is none")
    if not re.match(r"[a-z]", names.word):
        raise UsageError(
            f"{name!r} gives no name for the {kind}", why=f"{names.word!r} does not begin with a letter"
        )
    _check_free(names)
    return names


def _word(plugin: str, kind: str) -> str:
    for prefix in _PREFIXES[kind]:
        if plugin.startswith(prefix):
            return plugin.removeprefix(prefix)
    return plugin


def _check_free(names: Names) -> None:
    if names.dist in _OURS:
        raise GuardError(f"{names.dist} is a name of km's own", hint="choose another name")
    if names.word in _OFFERED.get(names.kind, ()):
        raise GuardError(f"{names.word!r} is a {names.kind} of km's own", hint="choose another name")
    try:
        version = distribution(names.dist).version
    except PackageNotFoundError:
        version = ""
    if version:
        raise GuardError(
            f"{names.dist} {version} is installed here", hint="choose another name, or uninstall it"
        )
    for entry in entry_points(group="km.plugins", name=names.plugin):
        owner = entry.dist.name if entry.dist is not None else "something installed"
        raise GuardError(f"{owner} has a plugin called {names.plugin!r}", hint="choose another name")
    if names.module in sys.stdlib_module_names or find_spec(names.module) is not None:
        raise GuardError(f"a module {names.module} is installed here", hint="choose another name")
