"""Runs one fuzz target under atheris: ``run.py TARGET CORPUS [ARGUMENT OF LIBFUZZER]…``; see `scripts/fuzz`."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["km_core", "km_net_proxy"]):
    from targets import SEEDS, TARGETS


def main() -> None:
    """Fuzz until libFuzzer is told to stop or something is found."""
    name = sys.argv.pop(1)
    for index, seed in enumerate(SEEDS[name]):
        Path(sys.argv[1], f"seed-{index}").write_bytes(seed)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
