"""The pod's backend on a real engine: order, hand-over, confinement, and what happens when parts die."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CONNECT = "import socket; s=socket.create_connection(({!r},{}),5); print(s.recv(200).decode())"


def test_connections_reach_the_gate_with_their_destination(live_pod, run_inside):
    pod = live_pod().up()

    assert pod.listeners.how == "tproxy"
    for address in ("192.0.2.7", "2001:db8::7"):
        _, out = run_inside(pod.context, "python3", "-c", CONNECT.format(address, 443))
        assert f'{address}", 443]' in out
