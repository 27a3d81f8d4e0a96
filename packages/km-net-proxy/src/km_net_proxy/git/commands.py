"""
The head of a push: which refs it would create, move or delete (gitprotocol-pack(5), gitprotocol-http(5)).

Read before anything of the push leaves, and read as ``git receive-pack`` reads it; where another server
could read something else, the list is refused.  What follows the list, the pack, is not looked at.
"""

from __future__ import annotations

import re

from attrs import frozen

from km_core.policy.refs import is_ref
from km_net_proxy.git.pktline import FLUSH, PktLineError, PktLines

MAX_LIST = 1 << 20
"""Longest list with its push options, in bytes."""
MAX_COMMANDS = 2000

_OID = rb"(?:[0-9a-f]{40}|[0-9a-f]{64})"
_COMMAND = re.compile(rb"(%b) (%b) ([^\x00\n]+)\n?\Z" % (_OID, _OID))
_SHALLOW = re.compile(rb"shallow %b\n?\Z" % _OID)
_CAPABILITIES = re.compile(rb"[\x20-\x7e]*\n?\Z")
_OPTION = re.compile(rb"[^\x00\n]*\n?\Z")
_CERTIFICATE_END = b"push-cert-end\n"
_SIGNATURE = re.compile(rb"-----BEGIN (?:PGP SIGNATURE|PGP MESSAGE|SIGNED MESSAGE|SSH SIGNATURE)-----")
"""How git tells where the signed text ends (its gpg-interface.c): what begins otherwise is read as commands."""


class CommandError(ValueError):
    """The list is malformed or too long; the text is safe to log and to show."""


@frozen
class Command:
    """
    One ref of a push.

    Attributes:
        old: object id that the ref is to have now; zeros to create it.
        new: object id that it is to get; zeros to delete it.
        ref: its full name.
    """

    old: str
    new: str
    ref: str

    @property
    def deletes(self) -> bool:
        """Whether the ref is to be deleted."""
        return not self.new.strip("0")


class CommandList:
    """
    Reads the head of a push, however it comes in pieces.

    Attributes:
        commands: what is asked for; empty for the probe that git sends before a long push.
        capabilities: what the client can do.
        done: the list has been read to its end.
    """

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.capabilities: frozenset[str] = frozenset()
        self.done = False
        self._lines = PktLines()
        self._size = 0
        self._take = self._command
        self._first = True
        self._certificate: bytearray | None = None

    @property
    def left(self) -> int:
        """Bytes that were given in the same piece as the end of the list, and belong to what follows it."""
        return self._lines.left

    def feed(self, data: bytes) -> None:
        """
        Take bytes of the body; those after the list are ignored.

        Raises:
            CommandError: the list is malformed, or longer than `MAX_LIST` or `MAX_COMMANDS`.
        """
        if self.done:
            return
        self._lines.feed(data)
        try:
            while not self.done:
                line = self._lines.next()
                if line is None:
                    break
                self._size += len(line) + 4
                if self._size > MAX_LIST:
                    raise CommandError(f"the list of refs is longer than {MAX_LIST} bytes")
                self._take(line)
        except PktLineError as error:
            raise CommandError(str(error)) from error

    def _command(self, line: bytes) -> None:
        if line == FLUSH:
            self._end_of_commands()
            return
        if line.startswith(b"shallow "):
            if not self._first or not _SHALLOW.match(line):
                raise CommandError("a shallow line is malformed")
            return
        line, mark, capabilities = line.partition(b"\0")
        if mark:
            if not self._first or not _CAPABILITIES.match(capabilities):
                raise CommandError("the capabilities are malformed")
            self.capabilities = frozenset(capabilities.decode("ascii").split())
        if self._certificate is not None:
            raise CommandError("commands follow a signed push")
        if self._first and line in {b"push-cert", b"push-cert\n"}:
            self._certificate = bytearray()
            self._take = self._certified
        else:
            self._add(line)
        self._first = False

    def _certified(self, line: bytes) -> None:
        certificate = self._certificate
        if line == FLUSH or certificate is None or b"\0" in line:
            raise CommandError("the push certificate is cut off")
        if line != _CERTIFICATE_END:
            certificate += line
            return
        self._take = self._command
        head, blank, rest = bytes(certificate).partition(b"\n\n")
        lines = rest.split(b"\n")
        starts = [index for index, each in enumerate(lines) if _SIGNATURE.match(each)]
        if not blank or not head.startswith(b"certificate version ") or len(starts) != 1:
            raise CommandError("the push certificate is malformed")
        for each in lines[: starts[0]]:
            self._add(each)

    def _add(self, line: bytes) -> None:
        match = _COMMAND.match(line)
        if match is None or len(match[1]) != len(match[2]):
            raise CommandError("a command is not old id, new id and ref")
        try:
            ref = match[3].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CommandError("a ref is not UTF-8") from error
        if not is_ref(ref):
            raise CommandError("a ref is not well formed")
        if len(self.commands) >= MAX_COMMANDS:
            raise CommandError(f"a push may concern at most {MAX_COMMANDS} refs")
        self.commands.append(Command(match[1].decode("ascii"), match[2].decode("ascii"), ref))

    def _end_of_commands(self) -> None:
        if self.commands and "push-options" in self.capabilities:
            self._take = self._option
        else:
            self.done = True

    def _option(self, line: bytes) -> None:
        if line == FLUSH:
            self.done = True
        elif not _OPTION.match(line):
            raise CommandError("a push option is malformed")
