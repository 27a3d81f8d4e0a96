"""The supervisor's side of commands against a first process that lies."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from km_core.errors import KmError, ProvisionError
from km_host import exec_channel
from km_host.fds import receive_frame, send_frame
from km_host.inside import frames

REQUEST = {"argv": ["true"], "env": {}, "cwd": "/", "tty": False}


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


class Liar:
    """The sandbox's end of the channel, answering as it likes."""

    def __init__(self):
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.reasons = []
        self.channel = exec_channel.InitChannel(ours, self.reasons.append)

    async def hear(self):
        message, descriptors = await receive_frame(self.theirs, max_descriptors=3)
        frames.close_all(descriptors)
        return message

    async def say(self, message, *descriptors):
        await send_frame(self.theirs, message, descriptors)

    async def close(self):
        await self.channel.close()
        self.theirs.close()


def play(scenario):
    async def run():
        liar = Liar()
        try:
            return await asyncio.wait_for(scenario(liar), 10)
        finally:
            await liar.close()

    before = open_count()
    result = asyncio.run(run())
    assert open_count() == before
    return result


def client_of(liar, **request):
    """Connect a client and send its request; returns the client's socket and the serving task."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    owner = (os.getuid(), os.getgid())
    task = asyncio.ensure_future(exec_channel.serve(theirs, liar.channel, owner))
    task.add_done_callback(lambda _: theirs.close())
    return ours, task, REQUEST | request


async def converse(liar, *answers, **request):
    """Run one client against scripted answers; returns its last message."""
    client, task, message = client_of(liar, **request)
    with client:
        await send_frame(client, message)
        asked = await liar.hear()
        for make in answers:
            answer, descriptors = make(asked["id"])
            await liar.say(answer, *descriptors)
            frames.close_all(list(descriptors))
        last = None
        while (received := await receive_frame(client, max_descriptors=3)) is not None:
            last = received[0]
            frames.close_all(received[1])
        await task
        return last


def started(number):
    return {"id": number, "pid": 5}, ()


@pytest.mark.parametrize("code", [-1, 256, "0", None, True, 1.5, [0]])
def test_an_exit_code_that_is_none_ends_the_channel(code):
    async def scenario(liar):
        last = await converse(liar, started, lambda number: ({"id": number, "exit": code}, ()))
        assert last["error"]["what"] == "the sandbox has ended"
        assert liar.reasons

    play(scenario)


def test_an_honest_exit_code_arrives():
    async def scenario(liar):
        assert await converse(liar, started, lambda number: ({"id": number, "exit": 9}, ())) == {"exit": 9}

    play(scenario)


@pytest.mark.parametrize("number", [0, -1, "1", None, 2**60, {}])
def test_a_number_that_is_none_ends_the_channel(number):
    async def scenario(liar):
        last = await converse(liar, lambda _: ({"id": number, "exit": 0}, ()))
        assert last["error"]["what"] == "the sandbox has ended"

    play(scenario)


def test_commands_nobody_asked_for_are_ignored():
    async def scenario(liar):
        strange = [
            lambda _: ({"id": 77, "exit": 3}, ()),
            lambda _: ({"id": 77, "pid": 3}, (os.open("/dev/null", 0),)),
        ]
        end = lambda number: ({"id": number, "exit": 0}, ())
        assert await converse(liar, *strange, started, end) == {"exit": 0}

    play(scenario)


@pytest.mark.parametrize("path", ["/dev/null", "/etc/hostname", "/"])
def test_a_descriptor_that_is_no_terminal_is_not_handed_to_the_operator(path):
    async def scenario(liar):
        answer = lambda number: ({"id": number, "pid": 5}, (os.open(path, os.O_RDONLY),))
        last = await converse(liar, answer, tty=True)
        assert last["error"]["what"] == "the sandbox did not hand out a terminal"

    play(scenario)


def test_the_slave_of_a_terminal_is_not_handed_to_the_operator():
    async def scenario(liar):
        master, slave = os.openpty()
        last = await converse(liar, lambda number: ({"id": number, "pid": 5}, (slave,)), tty=True)
        os.close(master)
        assert last["error"]["what"] == "the sandbox did not hand out a terminal"

    play(scenario)


def test_no_descriptor_at_all_is_an_error():
    async def scenario(liar):
        last = await converse(liar, started, tty=True)
        assert last["error"]["what"] == "the sandbox did not hand out a terminal"

    play(scenario)


def test_two_descriptors_end_the_channel():
    async def scenario(liar):
        last = await converse(
            liar, lambda number: ({"id": number}, (os.open("/dev/null", 0), os.open("/dev/null", 0)))
        )
        assert last["error"]["what"] == "the sandbox has ended"
        assert "nobody asked for" in liar.reasons[0]

    play(scenario)


def test_an_error_text_is_cut():
    async def scenario(liar):
        last = await converse(liar, lambda number: ({"id": number, "error": "x" * 10_000}, ()))
        assert last["error"]["why"] == "x" * 200

    play(scenario)


@pytest.mark.parametrize("data", [b"\xff" * 8, b"\0\0\0\1x", b"\0\0\0\2[]", b"\0\1\0\1" + b"x" * 65537])
def test_noise_ends_the_channel_once(data):
    async def scenario(liar):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(liar.theirs, data)
        with pytest.raises(ProvisionError, match="ended early"):
            await liar.channel.ready()
        await asyncio.sleep(0)
        assert len(liar.reasons) == 1

    play(scenario)


def test_a_closed_channel_fails_what_is_pending_and_what_comes():
    async def scenario(liar):
        client, task, message = client_of(liar)
        with client:
            await send_frame(client, message)
            await liar.hear()
            liar.theirs.close()
            answer, _ = await receive_frame(client, max_descriptors=3)
            assert answer["error"]["code"] == "provision"
            await task
        with pytest.raises(KmError):
            await liar.channel.start(REQUEST, ())
            await asyncio.sleep(0.1)

    play(scenario)


def test_a_client_that_hangs_up_hangs_its_command_up():
    async def scenario(liar):
        client, task, message = client_of(liar)
        with client:
            await send_frame(client, message)
            asked = await liar.hear()
            await liar.say({"id": asked["id"], "pid": 5})
            _, descriptors = await receive_frame(client, max_descriptors=3)
            frames.close_all(descriptors)
        assert await liar.hear() == {"op": "signal", "id": asked["id"], "signal": 1}
        await task

    play(scenario)


@pytest.mark.parametrize("number", [0, 65, -9, "KILL", None])
def test_signals_that_are_none_hang_the_command_up(number):
    async def scenario(liar):
        client, task, message = client_of(liar)
        with client:
            await send_frame(client, message)
            asked = await liar.hear()
            await liar.say({"id": asked["id"], "pid": 5})
            frames.close_all((await receive_frame(client, max_descriptors=3))[1])
            await send_frame(client, {"signal": number})
            assert await liar.hear() == {"op": "signal", "id": asked["id"], "signal": 1}
            await task

    play(scenario)
