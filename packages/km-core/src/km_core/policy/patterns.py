"""Host patterns of a profile, compiled to rules (spec/network.md section 2)."""

from __future__ import annotations

from ipaddress import ip_network

from km_core.plan import AddressRule, HostRule
from km_core.policy.addresses import parse_address
from km_core.policy.authority import parse_authority
from km_core.policy.names import canonical_name


def compile_pattern(text: str, *, dns_list: bool, source: str = "") -> HostRule:
    """
    Compile one entry of ``allowedHosts`` or ``allowedDNSSuffixes``.

    ========================  ==============================  ==============================
    entry                     in the DNS list                 in the host list
    ========================  ==============================  ==============================
    ``example.org``           the name and what is below it   exactly that name
    ``.example.org``          the name and what is below it   the name and what is below it
    ``*.example.org``         the name and what is below it   only what is below it
    ``*``                     every name                      every name
    ========================  ==============================  ==============================

    Args:
        text: the entry; in the host list it may end in ``:PORT``.
        dns_list: whether it stands in the DNS list.
        source: dotted path of the entry, for verdicts.

    Raises:
        ValueError: no pattern; an address (make an `AddressRule`: `compile_address`); a port in the
            DNS list.
    """
    entry = text
    ports: tuple[int, ...] = ()
    if ":" in entry and parse_address(entry) is None:
        if dns_list:
            raise ValueError(f"{text!r}: an entry of the DNS list has no port")
        entry, _, port_text = entry.rpartition(":")
        # Any name will do to have the port read by the one strict parser.
        ports = (parse_authority(f"port.invalid:{port_text}", None).port,)
    if entry == "*":
        return HostRule("*", "any", ports, source)
    if entry.startswith("*."):
        return HostRule(canonical_name(entry[2:]), "suffix" if dns_list else "subdomains", ports, source)
    if entry.startswith("."):
        return HostRule(canonical_name(entry[1:]), "suffix", ports, source)
    return HostRule(canonical_name(entry), "suffix" if dns_list else "exact", ports, source)


def compile_address(text: str, *, host: str = "", source: str = "") -> AddressRule | None:
    """
    Compile an address or CIDR entry (``192.0.2.7``, ``192.0.2.7:8080``, ``[2001:db8::1]:443``, ``10.1.0.0/16``).

    Args:
        text: the entry.
        host: the only name that may lead there; empty for a literal address.
        source: dotted path of the entry, for verdicts.

    Returns:
        The rule, or None when *text* is not an address (then it is a name pattern).

    Raises:
        ValueError: a CIDR with host bits set, or an address with a bad port.
    """
    if "/" in text:
        base, _, length = text.partition("/")
        if parse_address(base) is None or not (length.isascii() and length.isdigit()):
            return None
        return AddressRule(str(ip_network(text, strict=True)), (), host, source)
    address = parse_address(text)
    if address is not None:
        return AddressRule(str(ip_network(address)), (), host, source)
    if text.startswith("[") or (text.count(":") == 1 and parse_address(text.partition(":")[0]) is not None):
        authority = parse_authority(text, None)
        if authority.address is not None:
            return AddressRule(str(ip_network(authority.address)), (authority.port,), host, source)
    return None
