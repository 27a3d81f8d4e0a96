"""
``scripts/quickstart``: the main job of km on this machine, from profile to clean destroy.

Everything it makes is below ``.cache/quickstart`` in the clone and the runtime directory of that
``KM_HOME``; both are removed at the end.  A run that was killed is cleaned up by the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo.command import CommandError, Km
from demo.journey import ALIAS, Journey
from demo.report import report
from demo.standins import StandIns
from demo.traces import Traces

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
STAND_IN_KEYS = {
    "anthropic-api-key": "stand-in-anthropic-key-7d1f0c",
    "openai-api-key": "stand-in-openai-key-93be52",
}
LIVE_VARIABLES = {"anthropic-api-key": "ANTHROPIC_API_KEY", "openai-api-key": "OPENAI_API_KEY"}


def main() -> int:
    """Run the quick start; 0 when every promise was kept."""
    options = _options()
    started = time.monotonic()
    cache = ROOT / ".cache" / "quickstart"
    cache.mkdir(parents=True, exist_ok=True)
    km = Km(cache / "home")
    with _only_one(cache / "lock"):
        runtime_dir = _clean(km)
        secrets = _live_keys() if options.live else STAND_IN_KEYS
        if not secrets:
            _say("--live needs ANTHROPIC_API_KEY or OPENAI_API_KEY in the environment, or one key on stdin")
            return 2
        km.home.mkdir(mode=0o700)
        traces = Traces(km.home, runtime_dir)
        with StandIns(cache / "home" / "standins", live=options.live) as standins:
            # JSON is YAML, so no YAML writer is needed.
            (km.home / "config.yaml").write_text(json.dumps(standins.config()), encoding="utf-8")
            journey = Journey(km, standins, secrets, traces, _say)
            error = _travel(journey, options)
            if options.keep and error is None:
                return _keep(km, journey)
        facts = journey.facts
        _clean(km)
        left = traces.left()
        facts.check(
            "nothing is left: no process, namespace, control group, mount, container",
            not left,
            "; ".join(left),
        )
        facts.check(
            "nothing is left: no file outside the cache", not km.home.exists() and not runtime_dir.exists()
        )
        print(report(facts, time.monotonic() - started))
        return 0 if facts.ok else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart", description=__doc__.split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--docker", action="store_true", help="run the sandbox on the docker substrate")
    parser.add_argument(
        "--live",
        action="store_true",
        help="call the real AI providers with the keys of ANTHROPIC_API_KEY and OPENAI_API_KEY (or an Anthropic "
        "key on stdin); they are kept outside the sandbox.  Spends at most $0.10",
    )
    parser.add_argument("--keep", action="store_true", help="leave the sandbox running and say how to use it")
    return parser.parse_args()


def _travel(journey: Journey, options: argparse.Namespace) -> CommandError | None:
    try:
        journey.run(ROOT / "profiles" / "quickstart.yaml", substrate="docker" if options.docker else "local")
        if not options.keep:
            journey.destroy()
    except CommandError as error:
        journey.facts.check("every command works", kept=False, detail=str(error))
        return error
    return None


def _keep(km: Km, journey: Journey) -> int:
    print(report(journey.facts, 0.0))
    print(
        f"The sandbox runs on.  Its stand-ins are gone, so only refusals are left to see:\n  export KM_HOME={km.home}"
    )
    print(f"  {km.program} shell {ALIAS}\n  {km.program} destroy {ALIAS} --yes")
    return 0 if journey.facts.ok else 1


def _clean(km: Km) -> Path:
    """Remove what a run has made, also one that was killed; returns the runtime directory."""
    from km_core.config import default_runtime_dir

    runtime_dir = default_runtime_dir(km.home, km.env)
    if km.home.exists():
        with contextlib.suppress(CommandError, ValueError):
            for sandbox in km.data("list"):
                km.run("destroy", sandbox["id"], "--yes", check=False)
            km.run("reconcile", check=False)
        km.run("daemon", "stop", check=False)
        _wait_until_gone(runtime_dir / "kmd.sock")
        shutil.rmtree(km.home)
    shutil.rmtree(runtime_dir, ignore_errors=True)
    return runtime_dir


def _wait_until_gone(path: Path, wait_s: float = 5.0) -> None:
    deadline = time.monotonic() + wait_s
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _live_keys() -> dict[str, str]:
    keys = {
        name: os.environ[variable] for name, variable in LIVE_VARIABLES.items() if os.environ.get(variable)
    }
    if not keys and not sys.stdin.isatty() and (line := sys.stdin.readline().strip()):
        keys = {"anthropic-api-key": line}
    return keys


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Two runs at once would share the state directory: the second waits."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
