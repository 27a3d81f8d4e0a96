"""The serving side of the wire, over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from km_core.control.aio import AsyncControlClient
from km_core.control.ops import Op, integer, text
from km_core.control.rpc import ControlClient
from km_core.control.server import ControlServer
from km_core.errors import ControlError, ControlUnavailableError, GuardError, PolicyDenied, UsageError

ME = {os.geteuid()}


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="kms-") as directory:
        yield Path(directory) / "s.sock"


def table(**more):
    async def later(_peer, seconds):
        await asyncio.sleep(seconds / 1000)
        return seconds

    def refuse(_peer):
        raise GuardError("no", where="here", why="because", hint="try that")

    def bug(_peer):
        raise ZeroDivisionError("the secret is hunter2")

    return {
        "echo": Op(lambda _peer, word: word, {"word": text()}),
        "who": Op(lambda peer: [peer.pid, peer.uid]),
        "later": Op(later, {"seconds": integer(0, 100_000)}),
        "refuse": Op(refuse),
        "bug": Op(bug),
        "unsendable": Op(lambda _peer: {1j}),
        "big": Op(lambda _peer: "x" * 1_000_000),
        **more,
    }


def run(path, body, **options):
    async def main():
        options.setdefault("uids", ME)
        server = ControlServer(path, table(), **options)
        await server.start()
        try:
            return await asyncio.wait_for(body(server), 30)
        finally:
            await server.close(wait_s=0.2)

    return asyncio.run(main())


async def raw(path, data, *, read=1 << 20):
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 24)
    try:
        writer.write(data)
        await writer.drain()
        return await asyncio.wait_for(reader.readline(), 5) if read else b""
    finally:
        writer.close()


def blocking(path, function, **options):
    def call():
        with ControlClient(path, **options) as client:
            return function(client)

    return asyncio.to_thread(call)


def test_an_answer_comes_back_to_the_blocking_client(path):
    async def body(_server):
        assert await blocking(path, lambda client: client.call("echo", word="hé\n")) == "hé\n"

    run(path, body)


def test_the_peer_is_who_the_kernel_says(path):
    async def body(_server):
        assert await blocking(path, lambda client: client.call("who")) == [os.getpid(), os.geteuid()]

    run(path, body)


def test_a_peer_of_another_uid_is_refused_before_anything_is_read(path):
    async def body(_server):
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert json.loads(await reader.readline())["error"]["code"] == "policy-denied"
        assert await reader.read() == b""
        writer.close()

    run(path, body, uids={os.geteuid() + 4242})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_a_process_of_another_user_is_refused_even_when_it_reaches_the_socket(path):
    path.parent.chmod(0o755)
    code = (
        "import os,socket,sys\n"
        "os.setuid(65534)\n"
        "s=socket.socket(socket.AF_UNIX);s.connect(sys.argv[1])\n"
        "print(s.recv(4096).decode())\n"
    )

    async def body(_server):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        assert json.loads(done.stdout)["error"]["code"] == "policy-denied"

    run(path, body, mode=0o666)


def test_a_socket_without_any_way_to_tell_who_calls_is_not_made(path):
    with pytest.raises(ValueError, match="uids or a token"):
        ControlServer(path, {})


def test_errors_keep_their_fields_across_the_wire(path):
    async def body(_server):
        with pytest.raises(GuardError) as caught:
            await blocking(path, lambda client: client.call("refuse"))
        assert (caught.value.what, caught.value.where, caught.value.why, caught.value.hint) == (
            "no",
            "here",
            "because",
            "try that",
        )

    run(path, body)


def test_the_text_of_an_unexpected_error_does_not_cross_the_wire(path):
    logged = []

    async def body(_server):
        with pytest.raises(ControlError) as caught:
            await blocking(path, lambda client: client.call("bug"))
        assert "hunter2" not in str(caught.value.to_dict())
        assert caught.value.why == "ZeroDivisionError"
        with pytest.raises(ControlError):
            await blocking(path, lambda client: client.call("unsendable"))

    run(path, body, log=lambda event, **fields: logged.append((event, fields["op"])))
    assert logged == [("operation_failed", "bug"), ("operation_failed", "unsendable")]


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("nothing", {}),
        ("echo", {}),
        ("echo", {"word": 3}),
        ("echo", {"word": ""}),
        ("echo", {"word": "a", "id": "sb-00000000"}),
        ("later", {"seconds": True}),
        ("later", {"seconds": -1}),
        ("later", {"seconds": 1.5}),
    ],
)
def test_a_wrong_request_is_a_usage_error_and_the_connection_lives_on(path, op, args):
    async def body(_server):
        def calls(client):
            with pytest.raises(UsageError):
                client.call(op, **args)
            return client.call("echo", word="still here")

        assert await blocking(path, calls) == "still here"

    run(path, body)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        b'{"id":"1","op":"echo"}\n',
        b'{"id":1,"op":7}\n',
        b'{"id":1,"op":"echo","args":{"word":NaN}}\n',
        b"[" * 5000 + b"\n",
        b'{"id":' + b"9" * 5000 + b',"op":"echo"}\n',
        b"\xff\xfe\n",
    ],
)
def test_what_is_no_request_is_answered_and_the_connection_closed(path, line):
    async def body(_server):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line)
        assert json.loads(await reader.readline())["error"]["code"] == "usage"
        assert await reader.read() == b""
        writer.close()

    run(path, body)


def test_a_line_that_is_too_long_is_refused_without_being_held(path):
    async def body(server):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"id":1,"op":"echo","args":{"word":"' + b"x" * 20_000)
        assert b"longer than 10000 bytes" in await reader.readline()
        assert await reader.read() == b""
        writer.close()
        await asyncio.sleep(0.05)
        assert server.connections == 0

    run(path, body, max_line=10_000)


def test_pipelined_requests_are_answered_each_and_quick_ones_overtake_slow_ones(path):
    async def body(_server):
        client = AsyncControlClient(path)
        order = []

        async def call(milliseconds):
            order.append(await client.call("later", seconds=milliseconds))

        await asyncio.gather(call(300), call(10), *(call(100) for _ in range(20)))
        assert order[0] == 10
        assert order[-1] == 300
        assert len(order) == 22
        await client.close()

    run(path, body)


def test_no_more_operations_of_a_connection_wait_than_allowed(path):
    running = 0
    most = 0

    async def hold(_peer):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return True

    async def body(server):
        server.ops["hold"] = Op(hold)
        client = AsyncControlClient(path)
        assert all(await asyncio.gather(*(client.call("hold") for _ in range(40))))
        assert most == 4
        await client.close()

    run(path, body, max_pending=4)


def test_a_peer_that_does_not_read_is_not_read_from(path):
    calls = 0

    def big(_peer):
        nonlocal calls
        calls += 1
        return "x" * 1_000_000

    async def body(server):
        server.ops["big"] = Op(big)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.setblocking(False)
        sock.sendall(b'{"id":1,"op":"big","args":{}}\n' * 500)
        await asyncio.sleep(0.3)
        assert calls < 5
        sock.setblocking(True)
        answers = await asyncio.to_thread(_count_lines, sock, 500)
        assert answers == calls == 500
        sock.close()

    run(path, body)


def _count_lines(sock, wanted):
    count = 0
    while count < wanted:
        count += sock.recv(1 << 20).count(b"\n")
    return count


def test_a_token_comes_first_and_a_wrong_one_ends_the_connection(path):
    async def body(_server):
        right = lambda client: client.call("echo", word="in")
        assert await blocking(path, right, token="good") == "in"
        with pytest.raises(PolicyDenied):
            await blocking(path, right, token="bad")
        with pytest.raises(PolicyDenied):
            await blocking(path, right)

    run(path, body, uids=None, check_token=lambda token: token == "good")


@pytest.mark.parametrize("token", [None, 3, [], {}, "", "good "])
def test_only_the_token_itself_opens(path, token):
    async def body(_server):
        line = json.dumps({"id": 1, "op": "hello", "args": {"token": token}}).encode() + b"\n"
        assert json.loads(await raw(path, line))["error"]["code"] == "policy-denied"

    run(path, body, uids=None, check_token=lambda found: found == "good")


def test_a_request_pipelined_behind_a_wrong_token_is_not_run(path):
    ran = []

    async def body(server):
        server.ops["act"] = Op(lambda _peer: ran.append(1))
        await raw(path, b'{"id":1,"op":"hello","args":{"token":"bad"}}\n{"id":2,"op":"act","args":{}}\n')
        await asyncio.sleep(0.05)
        assert ran == []

    run(path, body, uids=None, check_token=lambda token: token == "good")


def test_a_connection_without_a_token_is_closed_after_a_while_and_holds_little(path):
    async def body(server):
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
        assert b"longer than 4096" in await raw(path, b"x" * 5000)
        assert server.connections == 0

    run(path, body, uids=None, check_token=lambda _token: False, hello_timeout_s=0.1)


def test_too_many_connections_are_turned_away(path):
    async def body(_server):
        held = [await asyncio.open_unix_connection(str(path)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(ControlError):
            await blocking(path, lambda client: client.call("echo", word="a"))
        for _, writer in held:
            writer.close()

    run(path, body, max_connections=3)


def test_dropping_connections_makes_a_client_come_in_anew(path):
    allowed = {"one"}

    async def body(server):
        client = AsyncControlClient(path, token="one")
        assert await client.call("echo", word="a") == "a"
        allowed.clear()
        server.drop_connections()
        await asyncio.sleep(0.05)
        with pytest.raises(PolicyDenied):
            await client.call("echo", word="a")
        await client.close()

    run(path, body, uids=None, check_token=lambda token: token in allowed)


def test_a_stale_socket_file_is_replaced_and_a_newer_one_is_left_alone(path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()

    async def body(_server):
        assert path.stat().st_mode & 0o777 == 0o600
        assert await blocking(path, lambda client: client.call("echo", word="new")) == "new"
        path.unlink()
        path.write_text("somebody else's")

    run(path, body)
    assert path.read_text() == "somebody else's"


def test_nothing_is_left_of_a_closed_server(path):
    async def body(_server):
        return None

    run(path, body)
    assert list(path.parent.iterdir()) == []


def test_a_path_that_is_too_long_is_said_to_be(path):
    with pytest.raises(ControlError, match="longer than 107"):
        run(path.with_name("x" * 100), None)


def test_closing_lets_a_running_operation_end_and_cuts_one_that_does_not(path):
    async def body(server):
        client = AsyncControlClient(path)
        short = asyncio.create_task(client.call("later", seconds=100))
        long = asyncio.create_task(client.call("later", seconds=60_000))
        async with asyncio.timeout(10):
            # Both have been taken up; a server that closes before is simply not there.
            while len(server.tasks) < 2:  # noqa: ASYNC110 - the server tells nobody when a request begins
                await asyncio.sleep(0.01)
        await server.close(wait_s=0.4)
        assert await short == 100
        with pytest.raises(ControlError):
            await long
        await client.close()

    run(path, body)


def test_an_operation_goes_on_when_its_caller_has_gone(path):
    ended = asyncio.Event()

    async def act(_peer):
        await asyncio.sleep(0.1)
        ended.set()

    async def body(server):
        server.ops["act"] = Op(act)
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"id":1,"op":"act","args":{}}\n')
        await writer.drain()
        writer.close()
        await asyncio.wait_for(ended.wait(), 5)

    run(path, body)


def test_a_client_finds_a_server_that_was_started_again(path):
    client = ControlClient(path)

    async def once(_server):
        return await asyncio.to_thread(client.call, "echo", word="a")

    assert run(path, once) == "a"
    with pytest.raises(ControlUnavailableError):
        client.call("echo", word="a")
    assert run(path, once) == "a"
    client.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=4).map(
                lambda data: json.dumps(data).encode()
            ),
            st.just(b'{"id":1,"op":"echo","args":{"word":"a"}}'),
        ),
        max_size=6,
    ),
    cut=st.integers(1, 50),
)
def test_no_bytes_bring_the_server_down(lines, cut):
    with tempfile.TemporaryDirectory(prefix="kms-") as directory:
        path = Path(directory) / "s"

        async def body(_server):
            reader, writer = await asyncio.open_unix_connection(str(path))
            data = b"\n".join(lines) + b"\n"
            try:
                for start in range(0, len(data), cut):
                    writer.write(data[start : start + cut])
                writer.write_eof()
                while await asyncio.wait_for(reader.readline(), 5):
                    pass
            except ConnectionError:
                pass
            writer.close()
            assert json.loads(await raw(path, b'{"id":9,"op":"echo","args":{"word":"z"}}\n'))["result"] == "z"

        run(path, body)
