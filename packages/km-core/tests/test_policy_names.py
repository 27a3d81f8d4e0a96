"""Names, addresses and authorities: one reading, whatever the spelling (anchors: B-14 to B-22)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.policy import (
    Authority,
    canonical_name,
    compile_address,
    compile_pattern,
    embedded_ipv4,
    forbidden_range,
    parse_address,
    parse_authority,
)

HOSTILE = st.text(
    alphabet=st.one_of(
        st.sampled_from("abcxn-_.:0123456789%@/[]*\\\0\t\r\n #?é。．ß\u200d"), st.characters(codec="utf-8")
    ),
    max_size=80,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GitHub.com", "github.com"),
        ("github.com.", "github.com"),
        ("_sip._tcp.example.org", "_sip._tcp.example.org"),
        ("localhost", "localhost"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a。b.example", "a.b.example"),
        ("r3---sn-x.example", "r3---sn-x.example"),
        ("1and1.example", "1and1.example"),
        ("x" * 63 + ".example", "x" * 63 + ".example"),
    ],
)
def test_one_spelling_of_a_name(text, name):
    assert canonical_name(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", ".example", "a..b", "example..", "evil\0.allowed.test", "a b", "a\tb", "a\r\nb", "a%2eb",
        "a/b", "a@b", "a:b", "[a]", "-a.example", "a-.example", "x" * 64, ".".join(["x" * 63] * 4) + ".xx", "a\\b",
        "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "::1", "[::1]", "1.2.3.4.", "1.2.3.4.5", "a.09",
        "256.256.256.256", "x.0x1f", "１２７.0.0.1", "faß.example", "ab\u200dc.example", "xn--a-.example",
        "xn--99999999.example", "*", "*.example", "é" * 2000,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        canonical_name(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("010.0.0.1", "8.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("1.65535", "1.0.255.255"),
        ("0", "0.0.0.0"),
        ("1.2.3.4.", "1.2.3.4"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("[::ffff:7f00:1]", "127.0.0.1"),
    ],
)
def test_an_address_is_recognised_in_every_notation(text, address):
    assert parse_address(text) == ip_address(address)


@pytest.mark.parametrize(
    "text",
    ["", "example", "1.2.3.4.5", "256.1.1.1", "1.2.3.256", "08.1.1.1", "fe80::1%eth0", "[fe80::1%25eth0]",
     "[[::1]]", "1..2", "4294967296", "1.2.3.4 ", "+1.2.3.4", "1_0.0.0.1", "١٢٧.0.0.1", "0x", "9" * 300],
)  # fmt: skip
def test_what_is_no_address_is_none(text):
    assert parse_address(text) is None or text == "0x"


@given(HOSTILE)
def test_parsers_raise_nothing_but_value_errors(text):
    parse_address(text)
    for parse in (
        canonical_name,
        lambda t: parse_authority(t, 443),
        lambda t: compile_pattern(t, dns_list=True),
        lambda t: compile_pattern(t, dns_list=False),
        compile_address,
    ):
        try:
            parse(text)
        except ValueError:
            continue


@given(HOSTILE)
def test_a_canonical_name_is_its_own_canonical_name_and_never_an_address(text):
    try:
        name = canonical_name(text)
    except ValueError:
        return
    assert canonical_name(name) == name
    assert canonical_name(name.upper() + ".") == name
    assert parse_address(name) is None
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789_-.")


@given(st.ip_addresses())
def test_every_address_is_recognised_and_is_no_name(address):
    expected = address.ipv4_mapped or address if address.version == 6 else address
    assert parse_address(str(address)) == expected
    with pytest.raises(ValueError, match=r"."):
        canonical_name(str(address))


@given(st.ip_addresses(v=4))
def test_every_notation_of_an_ipv4_address_means_the_same(address):
    value = int(address)
    octets = address.packed
    for text in (
        str(value),
        hex(value),
        f"0{value:o}",
        ".".join(hex(o) for o in octets),
        ".".join(f"0{o:o}" for o in octets),
        f"{octets[0]}.{value & 0xFFFFFF}",
        f"::ffff:{address}",
    ):
        assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "default", "expected"),
    [
        ("GitHub.com", 443, Authority("github.com", 443)),
        ("github.com:8443", 443, Authority("github.com", 8443)),
        ("[::1]:80", None, Authority("::1", 80, IPv6Address("::1"))),
        ("[::FFFF:10.0.0.1]", 443, Authority("10.0.0.1", 443, IPv4Address("10.0.0.1"))),
        ("0x7f.1:80", None, Authority("127.0.0.1", 80, IPv4Address("127.0.0.1"))),
        ("2130706433", 80, Authority("127.0.0.1", 80, IPv4Address("127.0.0.1"))),
    ],
)
def test_an_authority_is_read(text, default, expected):
    assert parse_authority(text, default) == expected
    assert parse_authority(str(expected), None) == expected


@pytest.mark.parametrize(
    "text",
    ["", "user@host:1", "user:pw@host:1", "[host]:1", "[[::1]]:1", "[::1", "::1", "::1:443", "[::1]443", "host:", "host:0",
     "host:65536", "host:0443", "host:+1", "host:443:80", "443:80", "443", "ho%73t:1", "ho\tst:1", "host:1\n", "a b:1",
     "host/:1", "host?x:1", "host#x:1", "[fe80::1%eth0]:1", "[1.2.3.4]:1", "host:٣", "http://host:1", "ho\\st:1"],
)  # fmt: skip
def test_a_crooked_authority_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        parse_authority(text, 443)


def test_a_missing_port_is_refused_where_one_is_needed():
    with pytest.raises(ValueError, match="needs a port"):
        parse_authority("host", None)


@pytest.mark.parametrize(
    ("text", "inner"),
    [
        ("::ffff:10.0.0.1", ["10.0.0.1"]),
        ("::10.0.0.1", ["10.0.0.1"]),
        ("::ffff:0:10.0.0.1", ["10.0.0.1"]),
        ("64:ff9b::10.0.0.1", ["10.0.0.1"]),
        ("64:ff9b:1::10.0.0.1", ["10.0.0.1"]),
        ("2002:a00:1::1", ["10.0.0.1"]),
        ("2001:0:c000:201::f5ff:fffe", ["192.0.2.1", "10.0.0.1"]),
        ("2001:db8::5efe:10.0.0.1", ["10.0.0.1"]),
        ("2001:db8::1", []),
        ("::1", []),
    ],
)
def test_the_ipv4_address_inside_an_ipv6_address_is_found(text, inner):
    assert [str(a) for a in embedded_ipv4(IPv6Address(text))] == inner


@pytest.mark.parametrize(
    "text",
    ["10.1.2.3", "100.64.0.1", "127.9.9.9", "169.254.169.254", "172.31.0.1", "192.168.0.1", "192.0.0.8", "198.19.255.255",
     "224.0.0.1", "240.0.0.1", "255.255.255.255", "0.0.0.0", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
     "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:c0a8:1::1", "168.63.129.16", "fec0::1"],
)  # fmt: skip
def test_no_name_leads_to_these_addresses(text):
    assert forbidden_range(ip_address(text)) is not None


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "2606:4700::1111", "64:ff9b::101:101"]
)
def test_public_addresses_are_not_forbidden(text):
    assert forbidden_range(ip_address(text)) is None


@pytest.mark.parametrize(
    "text",
    ["0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
     "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "168.63.129.16/32", "169.254.169.254/32", "169.254.170.2/32",
     "100::/64", "64:ff9b:1::/48", "fc00::/7", "fd00:ec2::/32", "fdc0:6b6d::/64", "fe80::/10", "fec0::/10", "ff00::/8"],
)  # fmt: skip
def test_a_range_ends_where_it_is_written_and_the_most_specific_counts(text):
    network = ip_network(text)
    for edge in (network[0], network[-1]):
        assert forbidden_range(edge).network == network
    for outside in (int(network[0]) - 1, int(network[-1]) + 1):
        if 0 <= outside < 1 << network.max_prefixlen:
            found = forbidden_range(type(network[0])(outside))
            assert found is None or found.network != network


@pytest.mark.parametrize(
    ("text", "dns_list", "kind", "pattern", "ports"),
    [
        ("github.com", True, "suffix", "github.com", ()),
        (".GitHub.com", True, "suffix", "github.com", ()),
        ("*.github.com", True, "suffix", "github.com", ()),
        ("*", True, "any", "*", ()),
        ("api.github.com.", False, "exact", "api.github.com", ()),
        (".nodejs.org", False, "suffix", "nodejs.org", ()),
        ("*.nodejs.org", False, "subdomains", "nodejs.org", ()),
        ("db.example.org:5432", False, "exact", "db.example.org", (5432,)),
        ("*:8443", False, "any", "*", (8443,)),
    ],
)
def test_a_pattern_is_compiled(text, dns_list, kind, pattern, ports):
    rule = compile_pattern(text, dns_list=dns_list, source="s")
    assert (rule.kind, rule.pattern, rule.ports, rule.source) == (kind, pattern, ports, "s")


@pytest.mark.parametrize(
    "text",
    ["", ".", "*.", "a.*.b", "**", "*x.org", "..x", "http://x.org", "x.org/", "10.0.0.1", "@group", "x:0"],
)
def test_what_is_no_pattern_is_refused(text):
    for dns_list in (True, False):
        with pytest.raises(ValueError, match=r"."):
            compile_pattern(text, dns_list=dns_list)


def test_an_address_entry_becomes_an_address_rule():
    assert compile_address("10.0.0.0/8").cidr == "10.0.0.0/8"
    assert compile_address("192.0.2.7:8080").ports == (8080,)
    assert compile_address("[2001:db8::1]:443").cidr == "2001:db8::1/128"
    assert compile_address("example.org") is None
    with pytest.raises(ValueError, match="host bits"):
        compile_address("10.0.0.1/8")
