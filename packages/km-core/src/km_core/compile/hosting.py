"""
Names below which anybody can host something, so that allowing all of them allows a way out.

A short table of what agents' profiles really name; the public suffix list is far longer and does not
hold ``amazonaws.com``, where every bucket has a name.  Not here: hosts whose shared content is what the
entry is for (``githubusercontent.com``, ``googleapis.com``).
"""

from __future__ import annotations

from km_core.policy.names import canonical_name

_SHARED = frozenset(
    [
        "co.uk",
        "org.uk",
        "com.au",
        "co.jp",
        "co.nz",
        "co.in",
        "co.za",
        "com.br",
        "com.mx",
        "com.cn",
        "amazonaws.com",
        "cloudfront.net",
        "awsapprunner.com",
        "elasticbeanstalk.com",
        "azurewebsites.net",
        "azureedge.net",
        "cloudapp.azure.com",
        "blob.core.windows.net",
        "windows.net",
        "appspot.com",
        "run.app",
        "web.app",
        "firebaseapp.com",
        "storage.googleapis.com",
        "github.io",
        "gitlab.io",
        "bitbucket.io",
        "pages.dev",
        "workers.dev",
        "r2.dev",
        "vercel.app",
        "netlify.app",
        "herokuapp.com",
        "onrender.com",
        "fly.dev",
        "railway.app",
        "deno.dev",
        "surge.sh",
        "glitch.me",
        "ngrok.io",
        "ngrok.app",
        "ngrok-free.app",
        "trycloudflare.com",
        "loca.lt",
        "serveo.net",
        "digitaloceanspaces.com",
        "ondigitalocean.app",
        "fastly.net",
        "akamaized.net",
        "b-cdn.net",
    ]
)


def consequence(entry: str, *, dns_list: bool) -> str:
    """
    Say what an entry of the egress lists lets in besides its evident meaning; empty when nothing.

    Args:
        entry: a valid entry, no group and no address.
        dns_list: whether it stands in ``allowedDNSSuffixes``, where a bare name is a suffix too.
    """
    entry, colon, port = entry.partition(":")
    if entry == "*":
        return f"allows every name at port {port}" if colon else "allows every name"
    suffix = dns_list or entry.startswith((".", "*."))
    try:
        name = canonical_name(entry.removeprefix("*.").removeprefix("."))
    except ValueError:
        return ""
    if suffix and "." not in name:
        return f"allows every name below the top-level domain {name}"
    if suffix and name in _SHARED:
        return f"allows every name below {name}, where anybody can host"
    return ""
