"""
The process in which a plugin is tried: ``python -m km_core.inspection.probe``.

Input on stdin is one JSON document ``{"name", "module", "path"}``; the answer on the stdout it was started
with is ``{"findings": [[check, status, message, hint]…], "import_ms", "hooks": [name…]}``.  Meanwhile
descriptor 1 is a file, so that what a plugin prints is noticed, whoever prints it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.inspection.finding import ERROR, OK, SKIPPED, WARNING
from km_core.inspection.sample import sample
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.plugins.calls import HookTimeoutError, brief, call, divert_to
from km_core.plugins.discover import GROUP, problems_of
from km_core.plugins.offers import CONTRACTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pluggy

    from km_core.profile.kinds import PluginSection

HEAVY = frozenset(
    {
        "aiohttp", "bcc", "boto3", "botocore", "bpy", "cryptography", "dnslib", "docker", "fastapi", "flask",
        "httpx", "nacl", "numpy", "pandas", "proxy", "requests", "sqlalchemy", "torch", "uvloop",
    }
)  # fmt: skip
"""Packages that no plugin imports at module level: every ``km`` command imports every plugin."""
_TOLD = frozenset({"km_notify"})
"""Hooks that act: they are not called here."""

Line = tuple[str, str, str, str]


def main() -> int:
    """Read what to try, try it, write what was found."""
    # What plugins import of km-core anyway is not counted as theirs.
    import km_core.control.steps
    import km_core.control.substrate
    import km_core.hookspecs  # noqa: F401 - for its import alone

    given = json.load(sys.stdin)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with answer, tempfile.TemporaryFile() as printed:
        sys.stdout.flush()
        os.dup2(printed.fileno(), 1)
        divert_to(printed.fileno())
        if given.get("path"):
            sys.path.insert(0, given["path"])
        result = _Probe(given["name"], given["module"], printed.fileno()).run()
        json.dump(result, answer)
        answer.flush()
    # A thread that hangs, or whatever a plugin registered to run at exit, is not waited for.
    os._exit(0)


class _Probe:
    def __init__(self, name: str, module: str, printed: int) -> None:
        self.name = name
        self.module = module
        self._printed = printed
        self._seen = 0
        self.lines: list[Line] = []
        self.import_ms = 0.0

    def add(self, check: str, status: str, message: str, hint: str = "") -> None:
        self.lines.append((check, status, message, hint))

    def run(self) -> dict[str, Any]:
        hooks: list[str] = []
        module = self._import()
        if module is not None:
            problems = problems_of(module)
            for what, hint in problems:
                self.add("contract", ERROR, what, hint)
            if not problems:
                hooks = self._hooks(module)
        return {"findings": self.lines, "import_ms": self.import_ms, "hooks": hooks}

    def _import(self) -> Any:
        before = set(sys.modules)
        began = time.process_time()
        outcome = call(EntryPoint(self.name, self.module, GROUP).load, what="import", plugin=self.name)
        self.import_ms = (time.process_time() - began) * 1000
        if outcome.error is not None:
            verb = "hangs" if isinstance(outcome.error, HookTimeoutError) else "fails"
            what = f"importing {self.module} {verb}: {brief(outcome.error)}"
            self.add("import", ERROR, what, _place(outcome.error))
            return None
        self.add("import", OK, f"{self.module} can be imported")
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        heavy = sorted(new & HEAVY)
        self.add(
            "light-import",
            ERROR if heavy else OK,
            f"imports {', '.join(heavy)} at module level" if heavy else "imports nothing heavy",
            "import it inside the function that needs it" if heavy else "",
        )
        self._silent("silent-import", "while it is imported", outcome.wrote)
        self._typed()
        return outcome.value

    def _silent(self, check: str, when: str, wrote: bool) -> None:
        size = os.fstat(self._printed).st_size
        if wrote or size != self._seen:
            hint = "write to standard error, or log"
            self.add(check, ERROR, f"prints to standard output {when}", hint)
        else:
            self.add(check, OK, f"prints nothing {when}")
        self._seen = size

    def _typed(self) -> None:
        top = self.module.partition(":")[0].partition(".")[0]
        spec = find_spec(top)
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        if any((Path(place) / "py.typed").is_file() for place in places):
            self.add("typed", OK, f"{top} has a py.typed")
        else:
            hint = f"put an empty py.typed beside {top}/__init__.py"
            self.add("typed", WARNING, f"{top} has no py.typed, so its types are not seen", hint)

    def _hooks(self, module: Any) -> list[str]:
        manager = new_manager()
        try:
            manager.register(module, name=self.name)
        except Exception as error:  # noqa: BLE001 - pluggy tells of a plugin's mistakes with several kinds
            self.add("contract", ERROR, f"cannot be registered: {brief(error)}")
            return []
        hooks = sorted(caller.name for caller in manager.get_hookcallers(module) or [])
        if hooks:
            self.add("contract", OK, f"implements {', '.join(hooks)}")
        else:
            self.add("contract", ERROR, "implements no hook", "mark a function with @hookimpl")
        answers = self._ask_all(manager)
        self._claims(answers)
        self._targets(answers)
        self._silent("silent-hooks", "when its hooks are called", wrote=False)
        return hooks

    def _ask_all(self, manager: pluggy.PluginManager) -> dict[str, list[Any]]:
        registry = PluginRegistry(manager, (PluginInfo(self.name, "", "", self.module, "ok"),))
        arguments = sample()
        answers: dict[str, list[Any]] = {}
        for hook in CONTRACTS:
            for impl in getattr(manager.hook, hook).get_hookimpls():
                if hook in _TOLD:
                    self.add("answer", SKIPPED, f"{hook} acts, so it is not called here", "use the kit")
                    continue
                given = {name: arguments[name] for name in impl.argnames}
                first, failure = registry.ask(hook, self.name, impl.function, given)
                if failure is not None:
                    # To check it is what is being done.
                    hint = "" if failure.hint.startswith("km plugins check") else failure.hint
                    self.add("answer", ERROR, failure.what, hint or _place(failure.__cause__))
                    continue
                answers[hook] = first
                self.add("answer", OK, f"{hook} answers with {_count(first)}")
                self._names(hook, first)
                second, failure = registry.ask(hook, self.name, impl.function, given)
                same = failure is None and [*_plain(hook, first)] == [*_plain(hook, second)]
                self.add(
                    "pure",
                    OK if same else ERROR,
                    f"{hook} gives {'the same' if same else 'something else'} when it is asked again",
                    "" if same else "an answer depends on the arguments alone",
                )
        return answers

    def _names(self, hook: str, items: list[Any]) -> None:
        contract = CONTRACTS[hook]
        names = [contract.name_of(item) for item in items] if contract.key else []
        for name in sorted({name for name in names if names.count(name) > 1}):
            self.add("answer", ERROR, f"{hook} offers {name!r} twice")

    def _claims(self, answers: dict[str, list[Any]]) -> None:
        claims = answers.get("km_field_claims", [])
        if not claims:
            return
        sections: list[PluginSection] = answers.get("km_profile_sections", [])
        unknown = sorted({claim.path for claim in claims} - set(_fields(sections)))
        for path in unknown:
            hint = "km plugins claims lists the fields"
            self.add("claims", ERROR, f"claims {path}, which is no field of a profile", hint)
        if not unknown:
            self.add("claims", OK, f"its {len(claims)} claims are on fields that exist")

    def _targets(self, answers: dict[str, list[Any]]) -> None:
        for hook in ("km_sidecars", "km_inside_services"):
            for item in answers.get(hook, []):
                module = item.target.partition(":")[0]
                try:
                    there = find_spec(module) is not None
                except (ImportError, ValueError):
                    there = False
                what = f"{item.name} runs {item.target}"
                self.add("target", OK if there else ERROR, what if there else f"{what}, which is not there")


def _fields(sections: list[PluginSection]) -> Iterator[str]:
    """Yield the dotted paths of all fields and sections of a profile."""
    from km_core.compile.claims.fields import model_fields

    for path in model_fields(sections):
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            yield ".".join(parts[:end])


def _place(error: BaseException | None) -> str:
    """Return where an exception was raised, as a hint: the plugin's own line, not that of a library below."""
    own, library = str(Path(__file__).parents[1]), str(Path(os.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__) if error is not None else ()):
        theirs = "site-packages" in frame.filename or not frame.filename.startswith((library, "<"))
        if theirs and not frame.filename.startswith(own):
            return f"raised in {frame.filename}, line {frame.lineno}"
    return ""


def _count(items: list[Any]) -> str:
    return f"{len(items)} item" + ("" if len(items) == 1 else "s")


def _plain(hook: str, items: list[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield what can be compared of each item: functions made anew for each call are not the same."""
    for item in items:
        attributes = [name for name in CONTRACTS[hook].rules if name != "self"]
        values = [getattr(item, name) for name in attributes] or [item]
        yield tuple(value for value in values if not callable(value) or isinstance(value, type))


if __name__ == "__main__":
    sys.exit(main())
