"""
``km-sidecar NAME [ARGUMENT…]``: start one of the long-running processes that plugins provide.

Imported are the installed plugins' modules of hooks, which are light, and the one module that holds the
runner.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sidecar named first in *argv*; returns its exit code, 2 for a usage error."""
    from km_core.errors import KmError

    # structlog loads it wherever it is installed, five megabytes that a process without a terminal never uses.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]  # None is how a module is kept out
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        sys.stderr.write("usage: km-sidecar NAME [ARGUMENT...]\n")
        return 0 if arguments else 2
    try:
        return resolve(arguments[0])(arguments[1:])
    except KmError as error:
        sys.stderr.write(f"error: {error}\n")
        if error.hint:
            sys.stderr.write(f"  hint: {error.hint}\n")
        return error.exit_code


def resolve(name: str) -> Callable[[list[str]], int]:
    """
    Return the function behind a sidecar's name.

    Raises:
        NotFoundError: no installed plugin offers it.
    """
    from km_core.errors import NotFoundError
    from km_core.plugins import load_plugins

    plugins = load_plugins()
    offers = plugins.sidecars()
    if name not in offers:
        known = ", ".join(offers) or "none"
        raise NotFoundError(
            f"no installed plugin offers the sidecar {name!r}",
            why="; ".join(str(failure) for failure in plugins.failures),
            hint=f"installed: {known}",
        )
    module, _, function = offers[name].target.partition(":")
    target: Callable[[list[str]], int] = getattr(import_module(module), function)
    return target


if __name__ == "__main__":
    sys.exit(main())
