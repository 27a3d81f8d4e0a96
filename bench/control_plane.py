"""
Round trips to kmd: what a gate waits for on the way of a model call.

Starts a real kmd in a directory of its own and prints one JSON document: the time of a reservation and
its settlement over a sandbox's socket, of a lease, and the calls per second that many clients reach
together.  ``python bench/control_plane.py [--calls 2000] [--clients 16]``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from km_core.config import Config
from km_core.control.rpc import ControlClient
from km_core.types import SandboxRecord, SandboxState
from km_embedded.start import connect

BOX = "sb-0000beef"


def quantiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {
        "median_ms": round(statistics.median(ordered) * 1e3, 4),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1e3, 4),
        "max_ms": round(ordered[-1] * 1e3, 4),
        "samples": len(ordered),
    }


def timed(calls: int, act) -> dict[str, float]:
    samples = []
    for number in range(calls):
        started = time.perf_counter()
        act(number)
        samples.append(time.perf_counter() - started)
    return quantiles(samples)


def pair(client: ControlClient, name: str) -> None:
    client.call("ledger.reserve", call_id=name, model="m", provider="p", amount_nusd=1000)
    client.call(
        "ledger.settle", call_id=name, cost_nusd=900, usage={"model": "m", "provider": "p", "input_tokens": 9}
    )


def together(path: Path, token: str, clients: int, calls: int) -> dict[str, float]:
    barrier = threading.Barrier(clients + 1)

    def work(number: int) -> None:
        with ControlClient(path, token=token) as client:
            client.call("lease", holder="gate")
            barrier.wait()
            for call in range(calls):
                pair(client, f"t{number}-{call}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    return {"clients": clients, "pairs_per_s": round(clients * calls / seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="kmb-"))
    config = Config(home=root / "h", runtime_dir=root / "r")
    started = time.perf_counter()
    operator = connect(config)
    start_s = time.perf_counter() - started
    started = time.perf_counter()
    connect(config).close()
    find_s = time.perf_counter() - started
    try:
        record = SandboxRecord(
            id=BOX, profile="bench", substrate="local", state=SandboxState.CREATING, created_at=time.time()
        )
        operator.call("sandbox.create", record=record.to_wire())
        operator.call("budget.set", id=BOX, ai_limit_nusd=10**14, compute_limit_nusd=None)
        access = operator.call("sandbox.open", id=BOX)
        path, token = Path(access["socket"]), access["token"]
        with ControlClient(path, token=token) as client:
            result = {
                "reserve_and_settle": timed(options.calls, lambda number: pair(client, f"c{number}")),
                "lease": timed(options.calls, lambda _number: client.call("lease", holder="gate")),
            }
        result["ping"] = timed(options.calls, lambda _number: operator.call("ping"))
        result["together"] = together(path, token, options.clients, max(1, options.calls // options.clients))
        spent = operator.call("budget.get", id=BOX)["ai"]
        result["start_s"], result["find_s"] = round(start_s, 3), round(find_s, 4)
        result["ledger_exact"] = spent["spent_nusd"] == 900 * sum(model["calls"] for model in spent["models"])
        print(json.dumps(result, indent=2))
    finally:
        operator.call("shutdown")
        operator.close()
        time.sleep(0.5)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
