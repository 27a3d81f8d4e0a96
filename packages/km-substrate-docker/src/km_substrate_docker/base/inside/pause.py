#!/usr/bin/python3 -IS
"""
The pause container's only program: owns the sandbox's network and process namespaces.

It is process 1 of every container of its sandbox.  It reaps orphans, and it ends when its standard
input does: the supervisor holds the other end, so when the supervisor dies, however it dies, this
process ends and the kernel kills every process of the sandbox with it (pid_namespaces(7)).  What
arrives on standard input is read and dropped.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_DUMPABLE = 4


def main() -> int:
    """Wait for the end of standard input; returns 0."""
    # Not dumpable: no process of the sandbox may look into this one, whatever its user id.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    # No other handlers: the kernel drops signals from inside that process 1 does not handle.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, reap)
    sys.stdout.write("paused\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass
    return 0


def reap(*_: object) -> None:
    """Collect every orphan that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


if __name__ == "__main__":
    sys.exit(main())
