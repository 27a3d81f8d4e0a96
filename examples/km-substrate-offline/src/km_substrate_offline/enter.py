"""
Run one command inside a sandbox: ``python -m km_substrate_offline.enter FD``.

The request, a JSON object ``{pid, argv, env, cwd, processes}``, is read from the descriptor, so that
neither the command nor its variables stand in this process's arguments or environment.  stdin, stdout and
stderr are the command's; the exit code is its own, or 128 and the number of the signal that ended it.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
from typing import Any, NoReturn

from km_substrate_offline import kernel, rootfs

NOT_EXECUTABLE, NOT_FOUND, NOT_ENTERED = 126, 127, 125


def main(arguments: list[str]) -> int:
    """Enter, run, wait."""
    with os.fdopen(int(arguments[0]), "rb") as source:
        request = json.load(source)
    kernel.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        if os.geteuid() == 0:
            os.setgroups([])
        # Nobody inside may look into this process before it is one of theirs.
        kernel.set_dumpable(False)
        descriptor = os.pidfd_open(request["pid"])
        kernel.enter_namespaces(descriptor)
        os.close(descriptor)
        child = os.fork()
    except OSError as error:
        sys.stderr.write(f"km: the sandbox cannot be entered: {error.strerror}\n")
        return NOT_ENTERED
    if child == 0:
        _become(request)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _become(request: dict[str, Any]) -> NoReturn:
    """In a fork inside: become the command."""
    code = NOT_ENTERED
    try:
        os.setsid()
        os.setresgid(rootfs.UID, rootfs.UID, rootfs.UID)
        os.setresuid(rootfs.UID, rootfs.UID, rootfs.UID)
        kernel.die_with_parent()
        os.umask(0o022)
        if request["processes"]:
            resource.setrlimit(resource.RLIMIT_NPROC, (request["processes"], request["processes"]))
        for number in range(1, signal.NSIG):
            if number not in {signal.SIGKILL, signal.SIGSTOP} and not 32 <= number <= 33:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        kernel.confine()
        os.chdir(request["cwd"])
        argv, env = request["argv"], request["env"]
        code = NOT_FOUND
        os.execvpe(argv[0], argv, env)  # noqa: S606 - what the operator asked for, without a shell
    except OSError as error:
        if code == NOT_FOUND and error.errno not in {errno.ENOENT, errno.ENOTDIR}:
            code = NOT_EXECUTABLE
        what = request["argv"][0] if code != NOT_ENTERED else error.filename or "the sandbox"
        os.write(2, f"km: {what}: {error.strerror}\n".encode(errors="surrogateescape"))
    except BaseException as error:  # noqa: BLE001 - a fork must never return into its parent's code
        os.write(2, f"km: the command cannot be started: {type(error).__name__}\n".encode())
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
