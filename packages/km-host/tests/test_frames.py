from __future__ import annotations

import asyncio
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_host.fds import peer_of, receive_frame, send_frame
from km_host.inside import frames

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def pair():
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=4))
def test_what_is_sent_is_received(message):
    left, right = socket.socketpair()
    with left, right:
        frames.send(left, message)
        assert frames.receive(right) == (message, [])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_an_error_or_an_end(data):
    left, right = socket.socketpair()
    with left, right:
        left.sendall(data)
        left.close()
        try:
            received = frames.receive(right, limit=1000)
        except frames.FrameError:
            return
        assert received is None or isinstance(received[0], dict)


def test_descriptors_travel_with_their_own_frame(pair):
    left, right = pair
    reading, writing = os.pipe()
    frames.send(left, {"n": 1})
    frames.send(left, {"n": 2}, (writing,))
    frames.send(left, {"n": 3})
    os.close(writing)
    assert frames.receive(right, max_descriptors=1) == ({"n": 1}, [])
    message, (descriptor,) = frames.receive(right, max_descriptors=1)
    assert message == {"n": 2}
    assert not os.get_inheritable(descriptor)
    os.write(descriptor, b"x")
    os.close(descriptor)
    assert os.read(reading, 2) == b"x"
    os.close(reading)
    assert frames.receive(right, max_descriptors=1) == ({"n": 3}, [])


@pytest.mark.parametrize(("sent", "allowed"), [(1, 0), (2, 1), (4, 3), (30, 2)])
def test_more_descriptors_than_asked_for_are_refused_and_closed(pair, sent, allowed):
    left, right = pair
    null = os.open(os.devnull, os.O_RDONLY)
    before = open_count()
    frames.send(left, {}, (null,) * sent)
    with pytest.raises(frames.FrameError, match="nobody asked for"):
        frames.receive(right, max_descriptors=allowed)
    assert open_count() == before
    os.close(null)


def test_descriptors_of_a_broken_frame_are_closed(pair):
    left, right = pair
    null = os.open(os.devnull, os.O_RDONLY)
    before = open_count()
    frames.send(left, {"a": 1}, (null,))
    left.close()
    with pytest.raises(frames.FrameError):
        frames.receive(right, max_descriptors=1, limit=2)
    assert open_count() == before - 1
    os.close(null)


@pytest.mark.parametrize("body", [b"[]", b"1", b"nul", b"\xff", b"[" * 5000])
def test_bodies_that_are_no_object_are_refused(pair, body):
    left, right = pair
    left.sendall(frames.HEADER.pack(len(body)) + body)
    with pytest.raises(frames.FrameError):
        frames.receive(right)


def test_a_length_above_the_limit_is_refused_before_it_is_read(pair):
    left, right = pair
    left.sendall(frames.HEADER.pack(2**32 - 1))
    with pytest.raises(frames.FrameError, match="too long"):
        frames.receive(right)


def test_asyncio_side_reads_what_arrives_byte_by_byte(pair):
    left, right = pair
    right.setblocking(False)

    async def scenario():
        data = frames.encode({"text": "ä" * 50})

        def trickle():
            for byte in data:
                left.send(bytes([byte]))

        thread = threading.Thread(target=trickle)
        thread.start()
        message = await receive_frame(right)
        thread.join()
        return message

    assert asyncio.run(scenario()) == ({"text": "ä" * 50}, [])


def test_asyncio_side_sends_more_than_the_socket_holds(pair):
    left, right = pair
    left.setblocking(False)
    message = {"text": "x" * 3_000_000}
    received = []
    thread = threading.Thread(target=lambda: received.append(frames.receive(right)))
    thread.start()
    asyncio.run(send_frame(left, message))
    thread.join()
    assert received == [(message, [])]


def test_peer_is_told_by_the_kernel(pair):
    assert peer_of(pair[0]) == (os.getpid(), os.getuid(), os.getgid())
