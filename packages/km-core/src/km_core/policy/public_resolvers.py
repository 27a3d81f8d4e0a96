"""
Public DNS resolvers that answer over HTTPS.

DNS over HTTPS to an allowed host carries any name past the DNS filter (spec/network.md section 9 row 9),
so these need an exact rule of their own; a suffix or ``*`` does not open them.
"""

from __future__ import annotations

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
