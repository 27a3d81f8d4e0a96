"""Synthetic addresses: on the disk before they are told, never given to another name."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.errors import KmError
from km_net_proxy.dns.names import NamesFullError, SyntheticNames, host_of, v4_of, v6_of


def run(coroutine):
    return asyncio.run(coroutine)


def test_names_get_addresses_of_their_own_and_keep_them(tmp_path):
    path = tmp_path / "names.jsonl"

    async def first():
        names = SyntheticNames(path)
        hosts = await asyncio.gather(*(names.assign(f"n{i % 50}.test") for i in range(200)))
        assert len(set(hosts)) == 50
        assert min(hosts) == 256
        assert names.lookup(ip_address("198.18.1.0")) == "n0.test"
        await names.close()
        return dict(zip((f"n{i}.test" for i in range(50)), hosts, strict=False))

    async def second(known):
        names = SyntheticNames(path)
        assert {name: await names.assign(name) for name in known} == known
        assert await names.assign("new.test") == 306
        await names.close()

    known = run(first())
    run(second(known))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [json.loads(line)["host"] for line in path.read_text().splitlines()] == list(range(256, 307))


def test_every_notation_of_an_address_leads_back_to_its_name(tmp_path):
    async def main():
        names = SyntheticNames(tmp_path / "n")
        await names.assign("a.test")
        for text in ("198.18.1.0", "::ffff:198.18.1.0", "fdc0:6b6d::100"):
            assert names.lookup(ip_address(text)) == "a.test"
        for text in ("198.18.0.1", "fdc0:6b6d::1"):
            assert names.lookup(ip_address(text)) == "km.internal"
        for text in (
            "198.18.1.1",
            "198.18.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "fdc0:6b6d::1:0:100",
            "::1",
            "10.0.0.1",
        ):
            assert names.lookup(ip_address(text)) is None
        await names.close()

    run(main())


@given(st.integers(0, (1 << 17) - 1))
def test_both_families_share_the_host_part(host):
    assert host_of(ip_address(v4_of(host))) == host_of(ip_address(v6_of(host))) == host


def test_an_assignment_is_on_the_disk_before_it_is_told(tmp_path, monkeypatch):
    synced = []
    whole = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(fd) or whole(fd))

    async def main():
        names = SyntheticNames(tmp_path / "n")
        await asyncio.gather(*(names.assign(f"n{i}.test") for i in range(100)))
        assert 1 <= len(synced) <= 3, "names that come in together share one sync"
        assert len((tmp_path / "n").read_text().splitlines()) == 100
        await names.close()

    run(main())


def test_a_full_table_fails_closed(tmp_path):
    async def main():
        names = SyntheticNames(tmp_path / "n", limit=3)
        got = await asyncio.gather(*(names.assign(f"n{i}.test") for i in range(5)), return_exceptions=True)
        assert [type(g) for g in got] == [int, int, int, NamesFullError, NamesFullError]
        assert await names.assign("n0.test") == 256
        with pytest.raises(NamesFullError):
            await names.assign("more.test")
        await names.close()

    run(main())


def test_a_disk_that_fails_assigns_nothing(tmp_path, monkeypatch):
    async def main():
        names = SyntheticNames(tmp_path / "n")
        whole = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(KmError, match="recorded"):
            await names.assign("a.test")
        assert names.host("a.test") is None
        assert (tmp_path / "n").read_bytes() == b""
        monkeypatch.setattr(os, "fsync", whole)
        assert await names.assign("b.test") == 256
        await names.close()

    run(main())


def test_a_torn_line_is_dropped_since_nobody_heard_of_it(tmp_path):
    path = tmp_path / "n"
    path.write_text('{"host": 256, "name": "a.test"}\n{"host": 257, "na')

    async def main():
        names = SyntheticNames(path)
        assert await names.assign("b.test") == 257
        await names.close()

    run(main())
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"host": 256, "name": "a.test"}\n{"host": 256, "name": "b.test"}\n',
        '{"host": 256, "name": "a.test"}\n{"host": 257, "name": "a.test"}\n',
        '{"host": 1, "name": "evil.test"}\n',
        '{"host": 256, "name": "km.internal"}\n',
        '{"host": 256, "name": "UPPER.test"}\n',
        '{"host": "256", "name": "a.test"}\n',
        "[]\n",
        "x\n",
        "\n",
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path, text):
    path = tmp_path / "n"
    path.write_text(text)
    with pytest.raises(KmError):
        SyntheticNames(path)


def test_one_table_has_one_writer(tmp_path):
    async def main():
        names = SyntheticNames(tmp_path / "n")
        with pytest.raises(KmError):
            SyntheticNames(tmp_path / "n")
        await names.close()

    run(main())


def test_a_cancelled_caller_takes_nothing_from_the_others(tmp_path):
    async def main():
        names = SyntheticNames(tmp_path / "n")
        one, two = (asyncio.create_task(names.assign("a.test")) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        assert await two == 256
        await names.close()

    run(main())
