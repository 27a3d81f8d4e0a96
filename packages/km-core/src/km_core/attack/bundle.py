"""The attempts as one text that any ``python3`` runs from its standard input or a file."""

from __future__ import annotations

from importlib.resources import files

MODULES = ("base", "network", "names", "web", "parsers", "tls", "vendors", "kernel", "identity")
"""The modules of `km_core.attack.inside`, each after those that it imports."""
_PACKAGES = ("km_core", "km_core.attack", "km_core.attack.inside")

_RUNNER = """
import json, os, shutil, signal, sys, tempfile

def main(argv):
    name, args = argv[0], json.loads(argv[1])
    args["token"] = args["token"].encode()
    # Raised as an exit, so that the temporary directory goes also when time is over.
    signal.signal(signal.SIGALRM, lambda number, frame: sys.exit(3))
    signal.alarm(int(args.get("limit_s", 60)))
    place = tempfile.mkdtemp(prefix="km-attack-")
    home = os.getcwd()
    try:
        os.chdir(place)
        attempts[name](args)
    finally:
        os.chdir(home)
        shutil.rmtree(place, ignore_errors=True)
    base = sys.modules["km_core.attack.inside.base"]
    counts = {"sent": len(base.SENT), "failed": len(base.ERRORS)}
    print(json.dumps({**counts, "sent_to": base.SENT[:20], "errors": base.ERRORS[:20]}))

main(sys.argv[1:])
"""


def bundle() -> str:
    """
    Return the program.

    Its arguments are the name of an attempt (a public function of the modules that takes *args*) and
    JSON: ``{"token": str, "limit_s": int, …}``.  It prints lines of JSON, the last of them
    ``{"sent": N, "failed": N, "sent_to": […], "errors": […]}``; *sent* counts what raised nothing, which proves nothing.
    All it writes is below one temporary directory, which it removes.
    """
    lines = ["import sys, types", "attempts = {}"]
    lines += [
        f"sys.modules.setdefault({name!r}, types.ModuleType({name!r})).__path__ = []" for name in _PACKAGES
    ]
    for module in MODULES:
        name = f"{_PACKAGES[-1]}.{module}"
        source = files("km_core.attack.inside").joinpath(f"{module}.py").read_text(encoding="utf-8")
        lines += [
            f"made = sys.modules[{name!r}] = types.ModuleType({name!r})",
            f"exec(compile({source!r}, {name!r}, 'exec'), made.__dict__)",
            "attempts.update((k, v) for k, v in vars(made).items() if callable(v))",
        ]
    return "\n".join(lines) + _RUNNER
