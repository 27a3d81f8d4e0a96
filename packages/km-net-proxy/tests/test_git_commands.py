"""The head of a push: any split reads the same, and what two servers could read differently is refused."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from km_core.types import Verdict
from km_net_proxy.git.commands import MAX_COMMANDS, MAX_LIST, Command, CommandError, CommandList
from km_net_proxy.git.pktline import FLUSH, MAX_LINE, PktLineError, PktLines, band, pkt
from km_net_proxy.git.report import Denial, push_report

A, B, ZERO = "a" * 40, "b" * 40, "0" * 40
CAPS = b"\0 report-status side-band-64k agent=git/2.39.5"


def read(*pieces):
    wanted = CommandList()
    for piece in pieces:
        wanted.feed(piece)
    return wanted


def line(ref="refs/heads/main", old=A, new=B, tail=b""):
    return pkt(f"{old} {new} {ref}".encode() + tail)


def test_a_push_with_shallow_lines_options_and_a_pack_reads_as_its_commands():
    body = (
        pkt(b"shallow " + A.encode()) + line(tail=CAPS + b" push-options") + line("refs/tags/v1\n", new=ZERO)
    )
    wanted = read(body + b"0000" + pkt(b"ci.skip") + b"0000PACK\0\0\0\2 anything")

    assert wanted.done
    assert [Command(A, B, "refs/heads/main"), Command(A, ZERO, "refs/tags/v1")] == wanted.commands
    assert [False, True] == [command.deletes for command in wanted.commands]
    assert {"report-status", "side-band-64k", "push-options"} < wanted.capabilities


def test_the_probe_of_a_long_push_has_no_commands():
    assert read(b"0000").done
    assert not read(b"0000").commands


def certificate(*lines, signature="-----BEGIN PGP SIGNATURE-----\nx\n-----END PGP SIGNATURE-----\n"):
    text = "certificate version 0.1\npusher t\nnonce n\n\n" + "".join(lines) + signature
    parts = [pkt(part.encode() + b"\n") for part in text.removesuffix("\n").split("\n")]
    return pkt(b"push-cert\0report-status") + b"".join(parts) + pkt(b"push-cert-end\n") + b"0000"


def test_a_signed_push_is_judged_by_the_commands_in_its_certificate():
    wanted = read(certificate(f"{A} {B} refs/heads/main\n", f"{A} {B} refs/heads/dev\n"))

    assert wanted.done
    assert ["refs/heads/main", "refs/heads/dev"] == [command.ref for command in wanted.commands]


@pytest.mark.parametrize(
    "body",
    [
        b"xyz1",
        b"+012abcd",
        b"0001",
        b"0002",
        b"0004",
        b"fff1" + b"x" * 70000,
        pkt(b"hello"),
        pkt(f"{A} {B}".encode()),
        line("main"),
        line("HEAD"),
        line("refs/heads/a b"),
        line("refs/heads/../x"),
        line("refs/heads/ok\nrefs/heads/no"),
        line("refs/heads/ok\0x") + line("refs/heads/no\0caps"),
        line(old=A[:39]),
        line(new=B * 2),
        line(old=A.upper()),
        pkt(f"{A}  {B} refs/heads/main".encode()),
        pkt(f"{A} {B} refs/heads/\xff".encode("latin-1")),
        line() + pkt(b"shallow " + A.encode()),
        pkt(b"shallow " + A.encode() + b"\0caps"),
        line() + pkt(b"push-cert\0x"),
        certificate(f"{A} {B} refs/heads/main\n", "garbage\n"),
        certificate(f"{A} {B} refs/heads/main\n", signature=""),
        certificate(signature="-----BEGIN PGP SIGNATURE-----\n" * 2),
        certificate(f"{A} {B} refs/heads/main\n", signature=f"-----BEGIN X-----\n{A} {B} refs/heads/dev\n"),
        certificate(f"{A} {B} refs/heads/main\n")[:-4] + line("refs/heads/no") + b"0000",
        pkt(b"push-cert\0x") + b"0000",
        line(tail=b"\0push-options") + b"0000" + pkt(b"a\nb"),
        line(tail=b"\0caps\x01"),
        b"".join(line(f"refs/heads/{n}") for n in range(MAX_COMMANDS + 1)),
        line(tail=b"\0push-options") + b"0000" + pkt(b"x" * 60000) * (MAX_LIST // 60000 + 1),
    ],
)
def test_a_list_that_is_no_plain_list_is_refused(body):
    with pytest.raises(CommandError):
        read(body + b"0000")


refs = st.sampled_from(
    ["refs/heads/main", "refs/heads/f/x", "refs/tags/v1", "refs/notes/é", "bad", "refs/x..y"]
)
oids = st.sampled_from([A, B, ZERO])
bodies = st.builds(
    lambda lines, tail: b"".join(lines) + tail,
    st.lists(
        st.one_of(
            st.builds(lambda o, n, r: pkt(f"{o} {n} {r}".encode()), oids, oids, refs),
            st.just(pkt(b"shallow " + A.encode())),
            st.just(line(tail=CAPS + b" push-options")),
            st.just(b"0000"),
            st.binary(max_size=30),
        ),
        max_size=6,
    ),
    st.sampled_from([b"0000", b"0000PACK", b"0000" + pkt(b"o") + b"0000PACK", b""]),
)


def outcome(pieces):
    wanted = CommandList()
    try:
        for piece in pieces:
            wanted.feed(piece)
    except CommandError:
        return None
    return wanted.done, wanted.commands, wanted.capabilities


@given(bodies, st.lists(st.integers(0, 400), max_size=12))
def test_any_split_reads_the_same(body, cuts):
    places = sorted({min(cut, len(body)) for cut in cuts})
    pieces = [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]

    assert outcome([body]) == outcome(pieces) == outcome([bytes([byte]) for byte in body])


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail_in_another_way(body):
    outcome([body])


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8), st.integers(1, 50))
def test_lines_come_back_as_they_were_made(payloads, step):
    data = b"".join(map(pkt, payloads)) + b"0000"
    lines, seen = PktLines(), []
    for start in range(0, len(data), step):
        lines.feed(data[start : start + step])
        while (found := lines.next()) is not None:
            seen.append(found)
    assert [*payloads, FLUSH] == seen


def test_the_longest_line_is_read_and_a_longer_one_is_not():
    lines = PktLines()
    lines.feed(pkt(b"x" * (MAX_LINE - 4)))
    assert MAX_LINE - 4 == len(lines.next())
    lines.feed(b"fff1")
    with pytest.raises(PktLineError):
        lines.next()


@pytest.fixture(scope="module")
def receive_pack(tmp_path_factory):
    """Return what `git receive-pack` says to a push's body."""
    path = tmp_path_factory.mktemp("bare")
    git = ["git", "-C", str(path)]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(path), "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run([*git, "init", "-q", "--bare"], check=True, env=env)
    for name, value in (("advertisePushOptions", "true"), ("certNonceSeed", "x")):
        subprocess.run([*git, "config", f"receive.{name}", value], check=True, env=env)

    def said(body):
        command = ["git", "receive-pack", "--stateless-rpc", str(path)]
        return subprocess.run(command, input=body, capture_output=True, check=False, env=env).stdout

    return said


def test_git_itself_reads_a_list_as_the_gate_does(receive_pack):
    body = (
        line("refs/heads/one", new=ZERO, tail=b"\0report-status") + line("refs/tags/two", new=ZERO) + b"0000"
    )
    said = receive_pack(body)
    assert ["refs/heads/one", "refs/tags/two"] == [command.ref for command in read(body).commands]
    assert b"refs/heads/one" in said
    assert b"refs/tags/two" in said


named = st.builds("{} {} {}".format, oids, oids, refs)
parts = st.one_of(
    st.builds(
        lambda text, tail: pkt(text.encode() + tail), named, st.sampled_from([b"", b"\n", CAPS, b"\0x"])
    ),
    st.builds(
        lambda lines, signature: certificate(*(f"{each}\n" for each in lines), signature=signature)[:-4],
        st.lists(named, max_size=2),
        st.sampled_from(
            [
                f"-----BEGIN {kind}-----\n{more}"
                for kind in ("PGP SIGNATURE", "SSH SIGNATURE", "X")
                for more in ("x\n", f"{A} {ZERO} refs/heads/hidden\n")
            ]
        ),
    ),
    st.sampled_from([b"0000", b"0001", b"0002", b"0004", pkt(b"\n"), pkt(b"shallow " + A.encode())]),
)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.builds(Command, oids, st.just(ZERO), refs), st.lists(parts, max_size=4), st.booleans())
def test_git_finds_no_ref_that_the_gate_has_not_judged(receive_pack, first, more, flushed):
    """The differential: whatever git reports on stood in the list that the gate accepted, or it accepted none."""
    body = pkt(f"{first.old} {first.new} {first.ref}".encode() + CAPS) + b"".join(more)
    body += b"0000" if flushed else b""
    read_here = outcome([body])
    if read_here is not None and read_here[0]:
        found = re.findall(rb"(?:ok|ng) (refs/\S+)", receive_pack(body))
        assert {ref.decode() for ref in found} <= {command.ref for command in read_here[1]}


def test_a_long_report_is_cut_into_lines_that_git_accepts():
    commands = [Command(A, B, f"refs/heads/{'x' * 200}{number}") for number in range(1000)]
    verdict = Verdict(False, "default-deny", "git", "not in allowedRefs")
    denial = Denial(verdict, "sb-1", "github.com", "o/r", commands[0].ref, writes=True)
    report = push_report(denial, commands, {}, frozenset({"report-status", "side-band-64k"}))
    lines, inner = PktLines(), b""
    lines.feed(report)
    while (found := lines.next()) != FLUSH:
        inner += found[1:] if found[:1] == b"\x01" else b""
    lines.feed(inner)
    assert b"unpack ok\n" == lines.next()
    assert len(commands) == sum(1 for _ in iter(lines.next, FLUSH))
    assert band(2, b"") == b""
