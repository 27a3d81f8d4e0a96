"""
Public DNS resolvers that answer over HTTPS or TLS.

DNS over HTTPS to an allowed host carries any name past the DNS filter (spec/network.md section 9 row 9),
so these need an exact rule of their own; a suffix, ``*`` or a range of addresses does not open them.
The addresses are those that the operators publish, and serve nothing else.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from km_core.policy.addresses import Address

_NAMES = frozenset(
    {
        "dns.google",
        "dns.google.com",
        "dns64.dns.google",
        "8888.google",
        "cloudflare-dns.com",
        "one.one.one.one",
        "cloudflare-gateway.com",
        "quad9.net",
        "doh.opendns.com",
        "dns.opendns.com",
        "doh.familyshield.opendns.com",
        "doh.sandbox.opendns.com",
        "doh.umbrella.com",
        "dns.umbrella.com",
        "adguard-dns.com",
        "adguard-dns.io",
        "dns.adguard.com",
        "dns-family.adguard.com",
        "dns-unfiltered.adguard.com",
        "dns.nextdns.io",
        "doh.cleanbrowsing.org",
        "doh.dns.sb",
        "dns.sb",
        "dns.alidns.com",
        "dns.pub",
        "doh.pub",
        "doh.360.cn",
        "dns.twnic.tw",
        "doh.li",
        "doh.ffmuc.net",
        "dns.mullvad.net",
        "doh.mullvad.net",
        "dns.controld.com",
        "freedns.controld.com",
        "doh.libredns.gr",
        "dns.switch.ch",
        "odvr.nic.cz",
        "doh.applied-privacy.net",
        "doh.appliedprivacy.net",
        "dns0.eu",
        "dns.digitale-gesellschaft.ch",
        "doh.xfinity.com",
        "dns.njal.la",
        "doh.tiar.app",
        "doh.tiarap.org",
        "ordns.he.net",
        "public.dns.iij.jp",
        "uncensoreddns.org",
        "dns.hostux.net",
        "dns.comss.one",
        "dns.surfsharkdns.com",
        "wikimedia-dns.org",
        "doh.centraleu.pi-dns.com",
        "dns.quad101.tw",
        "dnsforge.de",
        "doh.dnslify.com",
        "rethinkdns.com",
        "doh.crypto.sx",
        "family.dns.bebasid.com",
        "dns.bebasid.com",
    }
)

_ADDRESSES = frozenset(
    ip_address(text)
    for text in (
        *("8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"),
        *("2001:4860:4860::64", "2001:4860:4860::6464"),
        *("1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "1.1.1.3", "1.0.0.3"),
        *("2606:4700:4700::1111", "2606:4700:4700::1001", "2606:4700:4700::1112", "2606:4700:4700::1002"),
        *("2606:4700:4700::1113", "2606:4700:4700::1003", "2606:4700:4700::64", "2606:4700:4700::6400"),
        *("9.9.9.9", "149.112.112.112", "9.9.9.10", "149.112.112.10", "9.9.9.11", "149.112.112.11"),
        *("2620:fe::fe", "2620:fe::9", "2620:fe::10", "2620:fe::fe:10", "2620:fe::11", "2620:fe::fe:11"),
        *("208.67.222.222", "208.67.220.220", "208.67.222.123", "208.67.220.123"),
        *("2620:119:35::35", "2620:119:53::53", "2620:119:35::123", "2620:119:53::123"),
        *("94.140.14.14", "94.140.15.15", "94.140.14.15", "94.140.15.16", "94.140.14.140", "94.140.14.141"),
        *("2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff"),
        *("185.228.168.9", "185.228.169.9", "185.228.168.168", "185.228.169.168"),
        *("76.76.2.0", "76.76.10.0", "45.90.28.0", "45.90.30.0"),
        *("223.5.5.5", "223.6.6.6", "119.29.29.29", "180.76.76.76", "101.101.101.101", "101.102.103.104"),
        *("185.222.222.222", "45.11.45.11", "77.88.8.8", "77.88.8.1", "64.6.64.6", "64.6.65.6"),
        *("74.82.42.42", "2001:470:20::2", "4.2.2.1", "4.2.2.2", "193.110.81.0", "185.253.5.0"),
        *("194.242.2.2", "194.242.2.3", "194.242.2.4", "130.59.31.248", "130.59.31.251", "193.17.47.1"),
        *("185.43.135.1", "84.200.69.80", "84.200.70.40", "91.239.100.100", "89.233.43.71"),
    )
)


def is_resolver_address(address: Address) -> bool:
    """Say whether *address* (normalised) is that of a known public resolver."""
    return address in _ADDRESSES


def is_public_resolver(name: str) -> bool:
    """Say whether *name* (canonical) is, or lies below, a known public DNS-over-HTTPS resolver."""
    if name in _NAMES:
        return True
    at = name.find(".")
    while at >= 0:
        if name[at + 1 :] in _NAMES:
            return True
        at = name.find(".", at + 1)
    return False
