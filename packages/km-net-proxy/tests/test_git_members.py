"""What JSON bodies name: no body makes the reader fail in another way, and what is sent reads as it was judged."""

from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from km_core.policy.github import Route, classify
from km_core.policy.refs import is_ref
from km_core.policy.repos import GitPolicy
from km_net_proxy.git.members import batch, refs, source
from km_net_proxy.http.exchange import ClientBodyError

NAMES = [
    "operation",
    "Operation",
    "ref",
    "REF",
    "name",
    "objects",
    "oid",
    "size",
    "hash_algo",
    "head",
    "head_repo",
]
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 5),
        st.text(max_size=6),
        st.sampled_from(
            ["upload", "download", "refs/heads/main", "c" * 64, "sha256", "eve:x", "o:x", "eve/r"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)
    ),
    max_leaves=15,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "operation": st.sampled_from(["upload", "download", "Upload", 1]),
        "ref": st.one_of(values, st.fixed_dictionaries({"name": st.sampled_from(["refs/heads/a", "a"])})),
        "objects": st.one_of(
            values,
            st.lists(
                st.fixed_dictionaries(
                    {"oid": st.just("c" * 64), "size": st.integers(0, 9)}, optional={"x": values}
                )
            ),
        ),
        "hash_algo": st.sampled_from(["sha256", "sha1", None]),
        "Operation": st.just("upload"),
    },
)


@given(st.one_of(bodies, st.dictionaries(st.sampled_from(NAMES), values)))
def test_a_batch_is_sent_as_it_was_judged(body):
    with contextlib.suppress(ClientBodyError):
        read = batch(body)
        sent = json.loads(json.dumps(read.members))
        assert batch(sent) == read
        assert (read.direction, read.ref) == (sent["operation"], sent.get("ref", {}).get("name", ""))
        assert sent["operation"] == body["operation"]
        assert all(set(one) == {"oid", "size"} for one in sent["objects"])


@given(st.dictionaries(st.sampled_from([*NAMES, "branch", "Branch", "tag_name"]), values))
def test_refs_of_a_body_are_whole_refs_or_it_is_refused(body):
    for method, path in (("PUT", "contents/a"), ("POST", "git/refs"), ("POST", "releases")):
        route = classify("api.github.com", method, f"/repos/o/r/{path}")
        assert isinstance(route, Route)
        with contextlib.suppress(ClientBodyError):
            found = refs(route, body)
            assert found
            assert all(map(is_ref, found))


heads = st.one_of(values, st.from_regex(r"(?:[a-z]{1,3}:){0,2}[a-z]{1,3}", fullmatch=True))


@given(heads, st.one_of(st.none(), values, st.from_regex(r"(?:[a-z]{1,3}/)?[a-z]{1,3}", fullmatch=True)))
def test_a_pull_request_that_passes_names_nobody_else(head, named):
    policy = GitPolicy(("o/r",), None)
    with contextlib.suppress(ClientBodyError):
        if source(policy, "o/r", {"head": head, "head_repo": named}).allow:
            assert ":" not in head or head.lower().startswith("o:")
            assert named is None or named.lower().removesuffix(".git") in {"r", "o/r"}
