"""A disk that is really full: refused while it is, counted when it is not, and the chain is whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from km_core.audit import verify_dir

SANDBOX = "sb-12345678"
INSIDE = """
import json, os, subprocess, sys
from pathlib import Path
where, out = Path(sys.argv[1]), Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(where)], check=True)
from km_core.audit import ChainWriter, DecisionLog
from km_core.errors import AuditError
from km_core.types import Verdict
directory = where / "sb-12345678"
directory.mkdir()
fillers = [where / f"filler{number}" for number in range(3)]
for filler in fillers:
    filler.write_bytes(b"x" * 49152)
chain = ChainWriter(directory / "gate.jsonl", writer="gate", sandbox_id="sb-12345678")
log = DecisionLog(chain, window_s=0.0)
recorded = refused = 0
allow = Verdict(True, "r", "dns", "allowed by the profile")
for turn in range(3):
    while True:
        try:
            log.record(allow, kind="connect", name=f"n{recorded}.test", port=443)
            recorded += 1
        except AuditError as error:
            assert "space" in str(error) or "full" in str(error), error
            break
    refused += 1
    for _ in range(4):
        try:
            log.record(allow, kind="connect", name="refused.test", port=443)
            raise SystemExit("it was recorded on a full disk")
        except AuditError:
            refused += 1
    if turn == 1:
        # A gate that ended here and starts again continues the chain.
        told = chain.lost
        chain.close()
        fillers.pop().unlink()
        chain = ChainWriter(directory / "gate.jsonl", writer="gate", sandbox_id="sb-12345678")
        assert chain.lost == 0
        chain.lost = told
        log = DecisionLog(chain, window_s=0.0)
    else:
        fillers.pop().unlink()
    log.record(allow, kind="connect", name=f"after{turn}.test", port=443)
    recorded += 1
chain.close()
(out / "sb-12345678").mkdir()
(out / "sb-12345678" / "gate.jsonl").write_bytes((directory / "gate.jsonl").read_bytes())
print(json.dumps({"recorded": recorded, "refused": refused}))
"""


@pytest.mark.namespaces
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="needs root and unshare to mount a small disk",
)
def test_what_a_full_disk_refused_is_counted_and_the_chain_is_whole(tmp_path):
    small, out = tmp_path / "small", tmp_path / "out"
    small.mkdir()
    out.mkdir()
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", INSIDE, str(small), str(out)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)
    report = verify_dir(out / SANDBOX, None)
    assert report.ok, report.findings
    assert report.records == {"gate": counted["recorded"]}
    lines = [json.loads(line) for line in (out / SANDBOX / "gate.jsonl").read_text().splitlines()]
    assert [line["lost"] for line in lines if "lost" in line] == [5, 5, 5]
    assert counted["refused"] == 15
