"""Messages without sockets: dnslib reads what we build, and nothing hostile is more than malformed."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from km_net_proxy.dns import answer as wire
from km_net_proxy.dns.answer import MalformedError
from km_net_proxy.dns.reply import read_name, read_reply


def query(name, qtype="A", edns=False, **header):
    from dnslib import EDNS0, DNSRecord

    message = DNSRecord.question(name, qtype)
    if edns:
        message.add_ar(EDNS0(udp_len=4096, version=0, opts=[]))
    for key, value in header.items():
        setattr(message.header, key, value)
    return bytes(message.pack())


OPT = b"\0\0\x29\4\xd0\0\0\0\0\0\0"


def parse(data):
    from dnslib import DNSRecord

    return DNSRecord.parse(data)


def test_a_question_is_sliced_from_the_packet():
    packet = query("API.GitHub.com", "AAAA")
    question = wire.read_query(packet)
    assert wire.name_text(question.key) == "api.github.com"
    assert (question.qtype, question.qclass, question.end) == (wire.AAAA, 1, len(packet))
    assert (question.edns, question.limit) == (False, 512)
    question = wire.read_query(query("x.test", edns=True))
    assert (question.edns, question.limit, question.bad_version) == (True, 1232, False)


@pytest.mark.parametrize(
    ("packet", "rcode"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (query("x.test")[:2] + b"\x81" + query("x.test")[3:], None),
        (query("x.test")[:2] + b"\x28" + query("x.test")[3:], wire.NOTIMP),
        (query("x.test")[:2] + b"\x08" + query("x.test")[3:], wire.NOTIMP),
        (query("x.test")[:5] + b"\0" + query("x.test")[6:], wire.FORMERR),
        (query("x.test")[:5] + b"\2" + query("x.test")[6:], wire.FORMERR),
        (query("x.test")[:7] + b"\1" + query("x.test")[8:], wire.FORMERR),
        (query("x.test")[:-1], wire.FORMERR),
        (query("x.test")[:-5], wire.FORMERR),
        (query("x.test")[:12] + b"\xc0\x0c\0\1\0\1", wire.FORMERR),
        (query("x.test")[:12] + b"\x41" + b"a" * 65 + b"\0\0\1\0\1", wire.FORMERR),
        (query("x.test")[:12] + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1", wire.FORMERR),
        (query("x.test") + b"\0", wire.FORMERR),
        (query("x.test", edns=True)[:11] + b"\2" + query("x.test", edns=True)[12:], wire.FORMERR),
        (query("x.test", edns=True)[:11] + b"\2" + query("x.test", edns=True)[12:] + OPT, wire.FORMERR),
        (query("x.test", edns=True) + b"\0", wire.FORMERR),
        (query("x.test")[:11] + b"\1" + query("x.test")[12:], wire.FORMERR),
        (query("x.test")[:11] + b"\1" + query("x.test")[12:] + b"\0\0\xfa\0\xff" + b"\0" * 6, wire.FORMERR),
        (query("x.test")[:11] + b"\1" + query("x.test")[12:] + OPT[:-2] + b"\0\3\0\1\0", wire.FORMERR),
        (query("x.test")[:11] + b"\1" + query("x.test")[12:] + OPT[:-2] + b"\0\5\0\1\0\2x", wire.FORMERR),
    ],
    # Message ids are random, and test runs in several processes compare the tests' names.
    ids=[
        "nothing",
        "short-header",
        "response",
        "opcode-5",
        "opcode-1",
        "no-question",
        "two-questions",
        "an-answer",
        "cut-class",
        "cut-name",
        "pointer",
        "long-label",
        "long-name",
        "rest-after-question",
        "one-of-two-additionals",
        "two-opts",
        "rest-after-opt",
        "opt-missing",
        "signature",
        "half-an-option",
        "option-too-long",
    ],
)
def test_a_broken_query_is_malformed(packet, rcode):
    with pytest.raises(MalformedError) as caught:
        wire.read_query(packet)
    assert caught.value.rcode == rcode


def test_a_dot_inside_a_label_has_no_text():
    assert wire.name_text(b"\x0cevil.allowed\x04test\0") is None
    assert wire.name_text(b"\x01.\0") is None
    assert wire.name_text(b"\x06b\xfccher\x04test\0") is None
    assert wire.name_text(b"\0") == ""
    assert wire.name_text(b"\x01a\x04test\0") == "a.test"


@given(st.binary(max_size=300))
@example(query("x.test"))
def test_any_packet_is_read_or_malformed(data):
    try:
        question = wire.read_query(data)
    except MalformedError as error:
        if error.rcode is not None:
            assert len(wire.header_only(data, error.rcode)) == 12
        return
    wire.name_text(question.key)
    assert wire.empty_answer(data, question.end, 3)[12:] == data[12 : question.end]


@given(st.binary(max_size=200))
def test_any_reply_is_read_or_malformed(data):
    packet = query("x.test")
    reply = packet[:2] + b"\x81\x80\0\1\0\3\0\1\0\0" + packet[12:] + data
    try:
        assert read_reply(reply, len(packet), wire.A).rcode == 0
    except MalformedError:
        return


def test_a_denial_repeats_the_question_and_says_why():
    packet = query("ExAmPle.Test", edns=True)
    question = wire.read_query(packet)
    opt = wire.opt_record(ede=wire.EDE_BLOCKED, text="km: " + "é" * 200)
    message = parse(wire.empty_answer(packet, question.end, wire.NXDOMAIN, opt))
    assert (message.header.id, message.header.rcode, message.header.qr, message.header.ra) == (
        parse(packet).header.id,
        3,
        1,
        1,
    )
    assert str(message.q.qname) == "ExAmPle.Test."
    assert message.ar[0].rdata[0].code == 15
    assert message.ar[0].rdata[0].data[:2] == b"\0\x0f"
    message.ar[0].rdata[0].data[2:].decode()


def test_addresses_and_names_are_answered():
    packet = query("a.test")
    end = wire.read_query(packet).end
    message = parse(wire.address_answer(packet, end, wire.A, (bytes([198, 18, 1, 0]),), 60))
    assert (str(message.rr[0].rname), str(message.rr[0].rdata), message.rr[0].ttl) == (
        "a.test.",
        "198.18.1.0",
        60,
    )
    v6 = ip_address("fdc0:6b6d::100").packed
    message = parse(
        wire.address_answer(query("a.test", "AAAA"), end, wire.AAAA, (v6, v6), 5, opt=wire.opt_record())
    )
    assert [ip_address(str(r.rdata)) for r in message.rr] == [ip_address(v6)] * 2
    message = parse(wire.name_answer(query("a.test", "PTR"), end, wire.PTR, "km.internal", 9))
    assert str(message.rr[0].rdata.label) == "km.internal."


def test_a_long_answer_is_cut_to_the_clients_size():
    packet = query("a.test")
    end = wire.read_query(packet).end
    full = wire.address_answer(packet, end, wire.A, (b"\1\2\3\4",) * 60, 60)
    cut = parse(wire.truncate(full, end, 512))
    assert (cut.header.tc, cut.rr, len(cut.questions)) == (1, [], 1)
    assert wire.truncate(full, end, 4096) == full


def test_an_upstream_query_carries_no_option_of_the_clients():
    message = parse(wire.build_query(0x1234, wire.wire_name("a.test") + b"\0\1\0\1"))
    assert (message.header.id, message.header.rd, str(message.q.qname)) == (0x1234, 1, "a.test.")
    assert message.ar[0].rdata == []


def reply(*records, qname="a.test", rcode=0, auth=()):
    from dnslib import RR, DNSRecord

    message = DNSRecord.question(qname, "A").reply()
    message.header.rcode = rcode
    for text in records:
        message.add_answer(*RR.fromZone(text))
    for text in auth:
        message.add_auth(*RR.fromZone(text))
    packet = bytes(message.pack())
    return read_reply(packet, 12 + len(wire.wire_name(qname)) + 4, wire.A)


def test_a_cname_chain_is_followed_by_its_owners():
    got = reply("a.test 60 CNAME b.test", "b.test 30 CNAME C.test", "c.test 90 A 192.0.2.9")
    assert ([str(a) for a in got.addresses], got.ttl) == (["192.0.2.9"], 30)


def test_records_of_another_owner_are_not_believed():
    assert reply("evil.test 60 A 192.0.2.66").addresses == ()
    got = reply("a.test 60 CNAME b.test", "c.test 60 A 192.0.2.66", "a.test 9 A 192.0.2.1")
    assert [str(a) for a in got.addresses] == ["192.0.2.1"]


def test_aliases_that_lead_nowhere_make_a_reply_malformed():
    for records in (
        ["a.test 60 CNAME b.test", "b.test 60 CNAME a.test"],
        ["a.test 60 CNAME a.test"],
        ["a.test 60 CNAME b.test", "a.test 60 CNAME c.test", "c.test 60 A 192.0.2.1"],
        ["a.test 60 CNAME n0.test"] + [f"n{i}.test 60 CNAME n{i + 1}.test" for i in range(8)],
    ):
        with pytest.raises(MalformedError):
            reply(*records)
    # The same alias twice is one, and one whose end another reply would hold is just no address.
    assert reply("a.test 60 CNAME b.test", "a.test 9 CNAME b.test").addresses == ()


def test_a_negative_answer_lives_as_long_as_its_soa_says():
    soa = "test 600 SOA ns.test. root.test. 1 2 3 4 25"
    assert (reply(rcode=3, auth=[soa]).rcode, reply(rcode=3, auth=[soa]).ttl) == (3, 25)
    assert reply().ttl == 10


def test_a_message_of_pointers_costs_no_time():
    # Each pointer leads to the one before it: 8000 steps for every name, if they were followed.
    chain = b"".join((0xC000 | at - 2).to_bytes(2, "big") for at in range(14, 16382, 2))
    packet = b"\0" * 12 + b"\0\0" + chain
    with pytest.raises(MalformedError, match="too many"):
        read_name(packet, len(packet) - 2)
    assert read_name(packet, 12 + 2 * 32) == (b"\0", 12 + 2 * 33)


def test_compression_goes_backwards_only():
    with pytest.raises(MalformedError):
        read_name(b"\0" * 12 + b"\xc0\x0c", 12)
    with pytest.raises(MalformedError):
        read_name(b"\0" * 12 + b"\xc0\x10\1a\0", 12)
    with pytest.raises(MalformedError):
        read_name(b"\0" * 12 + b"\1a\xc0\x0c", 14)
    with pytest.raises(MalformedError):
        read_name(b"\0" * 12 + b"\x80", 12)
    assert read_name(b"\0" * 12 + b"\1A\0\1b\xc0\x0c", 15) == (b"\1b\1a\0", 19)
