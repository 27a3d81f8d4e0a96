"""What names can carry outside is counted per suffix, told before it is much, and refused (anchors: B-08)."""

from __future__ import annotations

import asyncio
import base64
import os

import pytest
from gate_rig import HostRule, Rig, until
from gate_rig import run as run_rig
from hypothesis import given
from hypothesis import strategies as st
from test_dns_server import query
from test_dns_server import run as serve
from test_dns_upstream import Upstream
from test_dns_upstream import run as ask

from km_core.errors import AuditError
from km_core.plan import NetworkPlan
from km_core.policy import NetworkPolicy, compile_pattern
from km_net_proxy.dns.answer import REFUSED, A
from km_net_proxy.dns.name_budget import MAX_KNOWN, MAX_NAMES, MAX_SUFFIXES, RULE, NameBudget
from km_net_proxy.dns.registries import pairs
from km_net_proxy.http.dial import DialDenied, Dialer, DialError

ENTRIES = (".allowed.test", "*.deep.example.org", "api.exact.test", "exact.allowed.test")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def budget(entries=ENTRIES, *, burst=256, per_hour=256, clock=None, alarms=None):
    rules = tuple(compile_pattern(e, dns_list=False, source=e) for e in entries)
    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=rules))
    told = [] if alarms is None else alarms
    return NameBudget(policy.free_below, burst_bytes=burst, bytes_per_hour=per_hour, on_alarm=told.append,
                      clock=clock or Clock())  # fmt: skip


def label(count=40):
    return base64.b32encode(os.urandom(count * 5 // 8)).decode().lower().rstrip("=")


def taken(subject, suffix, tries=2000):
    """Return how many bytes of random labels get out before the first refusal."""
    out = 0
    for _ in range(tries):
        text = label()
        if subject.charge(f"{text}.{suffix}") is not None:
            return out
        out += len(text) * 5 // 8
    return out


def test_names_below_a_suffix_carry_no_more_than_their_budget():
    assert 0 < taken(budget(), "allowed.test") <= 256
    assert 0 < taken(budget(), "deep.example.org") <= 256
    assert 0 < taken(budget(), "a.b.allowed.test") <= 256


def test_the_refusal_names_the_suffix_and_nothing_that_changes():
    subject = budget()
    taken(subject, "allowed.test")
    verdicts = {subject.charge(f"{label()}.allowed.test") for _ in range(5)}
    assert len(verdicts) == 1
    verdict = verdicts.pop()
    assert (verdict.allow, verdict.rule, verdict.layer) == (False, RULE, "dns")
    assert "below allowed.test" in verdict.reason


def test_names_that_a_rule_lists_carry_nothing():
    subject = budget()
    taken(subject, "allowed.test")
    for name in ("api.exact.test", "exact.allowed.test", "allowed.test"):
        assert all(subject.charge(name) is None for _ in range(5000))


def test_one_suffix_does_not_pay_for_another():
    subject = budget()
    taken(subject, "allowed.test")
    assert subject.charge("x.deep.example.org") is None


def test_the_order_of_known_names_costs_too():
    subject = budget(burst=4096)
    names = [f"n{i:02}.allowed.test" for i in range(64)]
    for name in names:
        assert subject.charge(name) is None
    asked = 0
    while subject.charge(names[asked % 64]) is None:
        asked += 1
        assert asked < 100_000
    # Each of 64 names is 6 bits.
    assert asked * 6 <= 4096 * 8
    assert asked * 6 > 3500 * 8


def test_one_name_again_and_again_costs_nothing():
    subject = budget()
    assert all(subject.charge("www.allowed.test") is None for _ in range(100_000))


def test_a_budget_is_earned_back():
    clock = Clock()
    subject = budget(clock=clock)
    taken(subject, "allowed.test")
    clock.now += 1800
    second = taken(subject, "allowed.test")
    assert 60 < second <= 128
    clock.now += 36_000
    assert taken(subject, "allowed.test") <= 256


@pytest.mark.parametrize(
    ("entry", "suffix"),
    [
        ("*", "attacker.org"),
        (".org", "attacker.org"),
        ("*.org", "attacker.org"),
        ("*", "x1.io"),
        ("*", "a.b.c.x1.io"),
        ("*", "firm.co.uk"),
    ],
)
def test_wide_rules_give_each_owner_one_budget(entry, suffix):
    subject = budget([entry])
    assert taken(subject, suffix) <= 256
    zone = ".".join(suffix.split(".")[-3 if suffix.endswith("co.uk") else -2 :])
    assert subject.charge(f"{label(60)}.{label(60)}.{zone}") is not None
    if "org" in entry or entry == "*":
        assert subject.charge("www.other.org") is None


@pytest.mark.parametrize("owned", ["co.de", "com.se", "net.de", "or.io", "go.cc", "edu.de"])
def test_a_name_that_only_looks_like_a_registry_is_one_budget(owned):
    subject = budget(["*"])
    out = 0
    for _ in range(100):
        if subject.charge(f"{label()}.{owned}") is not None:
            break
        out += 25
    assert out <= 256


def test_every_registry_is_one_in_the_public_suffix_list():
    known = pytest.importorskip("publicsuffixlist", reason="publicsuffixlist is not installed")
    suffixes = known.PublicSuffixList(only_icann=True)
    owned = [pair for pair in pairs() if suffixes.publicsuffix(f"{label(10)}.{pair}") != pair]
    assert owned == []


def test_one_registered_name_below_a_star_is_one_budget_however_its_labels_are_split():
    subject = budget(["*"])
    out = 0
    for i in range(3000):
        # A label of its own below a short domain must not be a budget of its own.
        if subject.charge(f"{label()}.q{i}.ab.io") is not None:
            break
        out += 25
    assert out <= 256


def test_suffixes_are_bounded_and_forgetting_is_no_refill():
    clock = Clock()
    subject = budget(["*"], clock=clock)
    taken(subject, "attacker.org")
    for i in range(MAX_SUFFIXES * 2):
        subject.charge(f"www.site{i}.org")
    assert len(subject._suffixes) <= MAX_SUFFIXES + 1
    assert subject.charge(f"{label()}.attacker.org") is not None
    # Beyond the bound all share one, which ends as well.
    assert taken(subject, "other-attacker.org") <= 256
    # What has been earned back makes room.
    clock.now += 3600 * 3
    assert subject.charge("www.fresh.org") is None
    assert len(subject._suffixes) < 10


def test_known_names_are_bounded_below_all_suffixes_together():
    clock = Clock()
    subject = budget(["*"], burst=1 << 20, clock=clock)
    for i in range(40):
        for k in range(1000):
            subject.charge(f"n{k}.site{i}.org")
    kept = sum(len(suffix.names) for suffix in subject._suffixes.values())
    assert kept == subject._known <= MAX_KNOWN
    # What was forgotten costs as much as a new name, and what is swept makes room.
    before = subject._suffixes["site39.org"].used
    subject.charge("n0.site39.org")
    assert subject._suffixes["site39.org"].used > before
    for suffix in subject._suffixes.values():
        suffix.used = 0.0
    for i in range(MAX_SUFFIXES):
        subject.charge(f"www.other{i}.org")
    clock.now += 2
    subject.charge("www.last.org")
    assert sum(len(suffix.names) for suffix in subject._suffixes.values()) == subject._known < 1100


def test_known_names_are_bounded():
    subject = budget(burst=1 << 20)
    for i in range(MAX_NAMES + 500):
        assert subject.charge(f"n{i}.allowed.test") is None
    assert len(subject._suffixes["allowed.test"].names) == MAX_NAMES


def test_the_alarm_comes_before_the_refusal_and_each_once():
    alarms, clock = [], Clock()
    subject = budget(clock=clock, alarms=alarms)
    while subject.charge(f"{label(10)}.allowed.test") is None:
        pass
    for _ in range(20):
        subject.charge(f"{label()}.allowed.test")
    assert [(a.suffix, a.exhausted, a.limit_bytes) for a in alarms] == [
        ("allowed.test", False, 256), ("allowed.test", True, 256)]  # fmt: skip
    assert 192 <= alarms[0].used_bytes < alarms[1].used_bytes <= 256
    clock.now += 3600
    while subject.charge(f"{label(10)}.allowed.test") is None:
        pass
    assert [a.exhausted for a in alarms] == [False, True, False, True]


@given(st.lists(st.text("abc", min_size=1, max_size=20), max_size=200))
def test_what_got_out_never_exceeds_the_budget(labels):
    subject = budget(burst=256, per_hour=0)
    seen, bits = set(), 0.0
    for text in labels:
        if subject.charge(f"{text}.allowed.test") is None and text not in seen:
            seen.add(text)
            bits += len(text) * 5.24
    assert bits <= 256 * 8


def test_policy_says_where_names_are_free():
    rules = tuple(compile_pattern(e, dns_list=False) for e in (*ENTRIES, "deep.example.org"))
    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=rules))
    found = {name: policy.free_below(name) for name in (
        "a.allowed.test", "a.b.allowed.test", "allowed.test", "exact.allowed.test", "x.exact.allowed.test",
        "deep.example.org", "x.deep.example.org", "api.exact.test", "nobody.org",
    )}  # fmt: skip
    assert found == {
        "a.allowed.test": "allowed.test", "a.b.allowed.test": "allowed.test", "allowed.test": None,
        "exact.allowed.test": None, "x.exact.allowed.test": "allowed.test", "deep.example.org": None,
        "x.deep.example.org": "deep.example.org", "api.exact.test": None, "nobody.org": None,
    }  # fmt: skip
    assert (
        NetworkPolicy.from_plan(NetworkPlan(hosts=(compile_pattern("*", dns_list=False),))).free_below("a.b")
        == ""
    )


def test_the_resolver_asks_the_budget_before_anything_leaves():
    async def test(upstream, resolver):
        for _ in range(100):
            last = await resolver.resolve(f"{label()}.allowed.test")
        assert (last.rcode, last.denied.rule) == (REFUSED, RULE)
        assert len({seen[0] for seen in upstream.seen}) <= 11
        reply = await resolver.query(f"{label()}.allowed.test", A)
        assert (reply.rcode, reply.denied.rule, reply.addresses) == (REFUSED, RULE, ())

    ask({}, test, budget=budget())


def test_what_is_remembered_or_under_way_costs_nothing():
    async def test(upstream, resolver):
        names = [f"n{i:02}.allowed.test" for i in range(32)]
        for _ in range(40):
            got = await asyncio.gather(*(resolver.resolve(name) for name in names for _ in range(3)))
            assert all(resolution.denied is None for resolution in got)
        assert len(upstream.seen) == 64

    ask({}, test, budget=budget(burst=256))


def test_an_alarm_that_cannot_be_recorded_stops_the_question():
    def broken(_alarm):
        raise AuditError("the disk is full")

    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=(compile_pattern("*", dns_list=False),)))
    subject = NameBudget(policy.free_below, burst_bytes=256, bytes_per_hour=0, on_alarm=broken)

    async def test(upstream, resolver):
        with pytest.raises(AuditError):
            for _ in range(100):
                await resolver.resolve(f"{label()}.allowed.test")
        assert len(upstream.seen) <= 22

    ask({}, test, budget=subject)


@pytest.mark.parametrize("level", [1, 2])
def test_an_alarm_that_could_not_be_recorded_is_still_told_later(level):
    disk = {"full": False}
    alarms = []

    def record(alarm):
        if disk["full"]:
            raise AuditError("the disk is full")
        alarms.append(alarm.exhausted)

    subject = NameBudget(
        lambda _name: "free.test", burst_bytes=256, bytes_per_hour=0, on_alarm=record, clock=Clock()
    )

    def ask_until(many):
        for _ in range(50):
            if len(alarms) >= many:
                break
            subject.charge(f"{label()}.free.test")

    ask_until(level - 1)
    disk["full"] = True
    for _ in range(2):
        with pytest.raises(AuditError):
            ask_until(2)
    disk["full"] = False
    ask_until(2)
    assert alarms == [False, True]


@pytest.mark.parametrize("passthrough", [False, True])
def test_a_client_is_refused_and_told_why(tmp_path, passthrough):
    async def test(gate):
        gate.resolver._budget = budget()
        for _ in range(30):
            message = await gate.ask(f"{label()}.allowed.test", edns=True)
        option = message.ar[0].rdata[0]
        assert (message.header.rcode, option.code, option.data[:2]) == (REFUSED, 15, b"\0\x12")
        assert RULE.encode() in option.data
        assert b"allowedHosts" in option.data
        assert (gate.decisions[-1][0], gate.decisions[-1][1]) == (False, RULE)
        # Each question is one decision, and those that were allowed are those that left.
        assert len(gate.decisions) == 30
        assert {name for allow, _rule, name, _type in gate.decisions if allow} == set(gate.zone.heard)
        assert len(set(gate.zone.heard)) <= 11

    serve(tmp_path, test, passthrough=passthrough)


def test_every_way_into_the_gate_pays_into_one_budget_and_the_alarm_reaches_the_operator():
    async def main():
        hosts = [HostRule("free.test", "suffix", (80,), ".free.test")]
        async with Upstream({}) as upstream, Rig(hosts=hosts) as rig:
            await rig.up()
            parts = rig.gate._parts
            parts.resolver._servers, parts.resolver._ports = [upstream.address], {upstream.address: []}
            rig.gate.context.dialer._resolver = parts.resolver
            parts.dns.open = True
            front = rig.proxy()
            name = ""
            for i in range(600):
                name = f"{label()}.{label()}.{label()}.{label()}.free.test"
                if i % 2:
                    found = parts.dns.respond(query(name))
                    if not isinstance(found, bytes):
                        await parts.dns.look_up(found)
                    continue
                reader, writer = await asyncio.open_connection("127.0.0.1", front)
                writer.write(
                    f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
                )
                async with asyncio.timeout(30):
                    page = await reader.read()
                writer.close()
                if b" 403 " in page.partition(b"\r\n")[0]:
                    break
            assert RULE.encode() in page
            assert b"below free.test" in page
            # 8 KiB, about 105 for each name; the last one never left.
            assert 70 <= len({seen[0] for seen in upstream.seen}) <= 82
            assert name not in {seen[0] for seen in upstream.seen}
            assert parts.dns.respond(query(name))[3] & 15 == REFUSED
            await until(lambda: len(told(rig)) == 2)
            assert [kind for kind, _ in told(rig)] == ["name_budget_warning", "name_budget_exhausted"]
            assert told(rig)[1][1]["suffix"] == "free.test"
            records = [event for event in rig.events() if event.get("kind", "").startswith("name_budget")]
            assert [(r["kind"], r["limit_bytes"]) for r in records] == [
                ("name_budget_warning", 8192), ("name_budget_exhausted", 8192)]  # fmt: skip
            denied = [e for e in rig.events() if e.get("rule") == RULE]
            assert {e["verdict"] for e in denied} == {"deny"}

    run_rig(main)


def told(rig):
    """Return the name alarms that the control plane got."""
    calls = [args for op, args in rig.kmd.calls if op == "event"]
    return [(a["kind"], a["detail"]) for a in calls if a["kind"].startswith("name_budget")]


def test_names_for_the_operators_own_proxy_pay_as_well():
    async def main():
        subject = budget(["*"])
        dialer = Dialer(
            NetworkPolicy.from_plan(NetworkPlan()), None, proxy="http://127.0.0.1:9", name_budget=subject
        )
        for _ in range(100):
            with pytest.raises((DialDenied, DialError)) as caught:
                await dialer.name(f"{label()}.free.test", 443)
        assert caught.value.verdict.rule == RULE

    asyncio.run(main())
