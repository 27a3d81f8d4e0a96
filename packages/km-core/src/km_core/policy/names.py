"""Canonical host names: one spelling, before every decision (spec/network.md section 2)."""

from __future__ import annotations

import re

from km_core.policy.addresses import parse_address

INSIDE_NAME = "km.internal"
"""The name of the inside API; the gate answers it and it never leaves."""

MAX_NAME = 253
"""Longest name in text form without its last dot, in octets (RFC 1035 section 2.3.4)."""

_LOCAL = frozenset(
    # RFC 6761 (test, invalid), 6762 with appendix G (what home and office networks use), 7686, 9476,
    # ICANN board resolution 2024.07.29.06 (internal); arpa holds RFC 6303's zones and RFC 8375's home.arpa.
    {
        "test",
        "invalid",
        "local",
        "lan",
        "home",
        "corp",
        "intranet",
        "internal",
        "private",
        "onion",
        "alt",
        "arpa",
    }
)

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# The last label must not read as a number: URL parsers take such a host for an IPv4 address
# (WHATWG URL, "ends in a number"), so 1.2.3.4.5, x.09 and 0x7f.0x1 are nobody's names.
_NAME = re.compile(rf"(?:{_LABEL}\.)*(?!(?:[0-9]+|0x[0-9a-f]*)\Z){_LABEL}\Z")
# IDNA 2003 (the standard library's) maps these four to other letters or to nothing, IDNA 2008 keeps
# them: the two would reach different hosts, so such a name has no canonical form.
_DEVIATIONS = frozenset("\u00df\u03c2\u200c\u200d")
_MAX_INPUT = 4 * MAX_NAME


def canonical_name(text: str) -> str:
    """
    Return the one spelling of a host name: lower case, A-labels, no dot at the end.

    Letters outside ASCII go through IDNA 2003; a name on which IDNA 2003 and 2008 differ is refused.

    Args:
        text: a name as a client, a profile or a DNS message spells it; one trailing dot is allowed.

    Raises:
        ValueError: *text* is no host name, or is an address literal in any notation.
    """
    name = text.removesuffix(".")
    if not name.isascii():
        name = _to_ascii(name)
    name = name.lower()
    if len(name) > MAX_NAME:
        raise ValueError(f"a host name has at most {MAX_NAME} characters, this one has {len(name)}")
    if _NAME.match(name) is None:
        raise ValueError(_why_not(name))
    if "xn--" in name:
        _check_a_labels(name)
    return name


def is_local_name(name: str) -> bool:
    """
    Say whether a canonical name means nothing in the public DNS: one label, or below a special-use domain.

    Asked of a resolver it tells the network around the operator what the sandbox looks for, and what
    answers is a machine of that network.
    """
    return name[name.rfind(".") + 1 :] in _LOCAL or "." not in name


def _to_ascii(name: str) -> str:
    if len(name) > _MAX_INPUT:
        raise ValueError("the host name is too long")
    if _DEVIATIONS.intersection(name):
        raise ValueError(f"{name!r} means different hosts under IDNA 2003 and 2008: write its xn-- form")
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ValueError(f"{name!r} has no IDNA form ({error})") from None


def _check_a_labels(name: str) -> None:
    for label in name.split("."):
        if label.startswith("xn--"):
            try:
                decoded = label[4:].encode("ascii").decode("punycode")
            except UnicodeError:
                raise ValueError(f"{label!r} is not a valid A-label") from None
            if decoded.isascii():
                raise ValueError(f"{label!r} encodes plain ASCII, which no valid A-label does")


def _why_not(name: str) -> str:
    if not name:
        return "a host name cannot be empty"
    if parse_address(name) is not None:
        return f"{name!r} is an address, not a name"
    if ".." in name or name.startswith("."):
        return f"{name!r} has an empty label"
    labels = name.split(".")
    if any(len(label) > 63 for label in labels):
        return "a label has at most 63 characters"
    odd = sorted(set(re.sub(r"[a-z0-9_.-]", "", name)))
    if odd:
        return f"{name!r} holds characters that no host name has: {''.join(odd)!r}"
    if any(label.startswith("-") or label.endswith("-") for label in labels):
        return f"{name!r} has a label that starts or ends with a hyphen"
    return f"{name!r} ends in a number, so parsers disagree whether it is an address"
