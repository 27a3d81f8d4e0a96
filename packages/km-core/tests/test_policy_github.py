"""Repository and ref rules: what one request to GitHub asks for, and what nobody could tell is denied."""

from __future__ import annotations

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.compile.explain import EgressRules, explain_target
from km_core.plan import GitPlan, HostRule, NetworkPlan
from km_core.policy import NetworkPolicy
from km_core.policy.github import GIT_HOSTS, Route, classify
from km_core.policy.refs import is_ref
from km_core.policy.repos import GitPolicy, canonical_repo
from km_core.profile import grammar
from km_core.types import Verdict

WEB, API = "github.com", "api.github.com"

ROUTES = [
    (WEB, "GET", "/o/r.git/info/refs?service=git-upload-pack", "fetch", "o/r"),
    (WEB, "GET", "/O/R/info/refs?service=git-upload-pack", "fetch", "o/r"),
    (WEB, "GET", "/o/r/info/refs?service=git-receive-pack", "push-discovery", "o/r"),
    (WEB, "POST", "/o/r.git/git-upload-pack", "fetch", "o/r"),
    (WEB, "POST", "/o/r/git-receive-pack", "push", "o/r"),
    (WEB, "GET", "/o/r.wiki.git/info/refs?service=git-upload-pack", "fetch", "o/r.wiki"),
    (WEB, "POST", "/o/r.git/info/lfs/objects/batch", "lfs-batch", "o/r"),
    (WEB, "POST", "/o/r/info/lfs/locks/verify", "lfs-lock", "o/r"),
    (WEB, "GET", "/o/r/info/lfs/locks?path=a", "read", "o/r"),
    (WEB, "GET", "/o/r?go-get=1", "read", "o/r"),
    (WEB, "GET", "/o/r/archive/refs/tags/v1.tar.gz", "read", "o/r"),
    (WEB, "HEAD", "/o/r/releases/download/v1/tool%20one.zip", "read", "o/r"),
    (API, "GET", "/repos/O/r", "read", "o/r"),
    (API, "GET", "/repos/o/r/contents/a%2Fb?ref=x", "read", "o/r"),
    (API, "POST", "/repos/o/r/issues/1/comments", "api-write", "o/r"),
    (API, "PATCH", "/repos/o/r/git/refs/heads/main", "api-write", "o/r"),
    (API, "GET", "/repositories/12/issues?page=2", "read", ""),
    (API, "POST", "/graphql", "graphql", ""),
    (API, "GET", "/search/code?q=x", "any-read", ""),
    (API, "GET", "/rate_limit", "open", ""),
    (API, "GET", "/repos/o/r/compare/main...f/x", "read", "o/r"),
    (API, "GET", "/repos/o/r/compare/o:main...O:r:dev", "read", "o/r"),
    (API, "GET", "/repos/o/r/compare/main...eve:dev", "any-read", ""),
    (API, "GET", "/repos/o/r/compare/main..o:secret:dev", "any-read", ""),
    (API, "GET", "/repos/o/r/compare%2fo%3Asecret%3Amain...dev", "any-read", ""),
    (API, "GET", "/repos/o/r/dependency-graph/compare/main...eve:dev", "any-read", ""),
    (API, "GET", "/repositories/12/compare/main...eve:dev", "any-read", ""),
    (WEB, "GET", "/o/r/compare/main...eve:r:x.diff", "any-read", ""),
    (WEB, "GET", "/o/r/pull/new/eve:x", "any-read", ""),
    (WEB, "GET", "/o/r/pull/12.diff", "read", "o/r"),
    (API, "PATCH", "/repos/o/r/issues/1", "api-write", "o/r"),
    (API, "DELETE", "/repos/o/r/issues/comments/9/reactions/3", "api-write", "o/r"),
    (API, "DELETE", "/repos/o/r/issues/1/labels/a%2Fb", "api-write", "o/r"),
    (API, "POST", "/repos/o/r/pulls", "api-write", "o/r"),
    ("raw.githubusercontent.com", "GET", "/o/r/main/a/b", "read", "o/r"),
    ("media.githubusercontent.com", "GET", "/media/o/r/main/a", "read", "o/r"),
    ("codeload.github.com", "GET", "/o/r/tar.gz/refs/heads/main", "read", "o/r"),
    ("uploads.github.com", "POST", "/repos/o/r/releases/1/assets?name=a", "upload", "o/r"),
    ("objects.githubusercontent.com", "GET", "/x?sig=1", "signed", ""),
    ("github-cloud.s3.amazonaws.com", "PUT", "/alambic/x", "signed", ""),
]

DENIED = [
    (WEB, "GET", "/o/r/info/refs"),  # the dumb protocol
    (WEB, "GET", "/o/r/info/refs?service=git-upload-pack&service=git-receive-pack"),
    (WEB, "GET", "/o/r/info/refs?service=git-upload-archive"),
    (WEB, "POST", "/o/r/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/r/git-upload-pack"),
    (WEB, "PUT", "/o/r/git-receive-pack"),
    (WEB, "GET", "/o/allowed/../r/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/allowed/%2e%2e/r/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/allowed%2f..%2fr/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/allowed/archive/%252e%252e/x"),
    (WEB, "GET", "//o/r/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o//r/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o\\r/x/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/%6f/r/info/refs?service=git-upload-pack%00"),
    (WEB, "GET", "/o/r.git.git/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/r;x/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/%zz/info/refs?service=git-upload-pack"),
    (WEB, "GET", "/o/r#/info/refs?service=git-upload-pack"),
    (WEB, "POST", "/login/oauth/access_token"),
    (WEB, "POST", "/session"),
    (WEB, "GET", "/o"),
    (WEB, "POST", "/o/r/releases"),
    (API, "GET", "/repos/o/r.git"),
    (API, "GET", "/repos/o/%2e%2e/orgs"),
    (API, "POST", "/repos/o/r/forks"),
    (API, "PATCH", "/repos/o/r"),
    (API, "DELETE", "/repos/o/r"),
    (API, "PUT", "/repos/o/r/collaborators/eve"),
    (API, "POST", "/repos/o/r/transfer"),
    (API, "POST", "/repos/o/r/hooks"),
    (API, "POST", "/repos/o/r/keys"),
    (API, "PUT", "/repos/o/r/actions/secrets/X"),
    (API, "POST", "/repos/o/r/generate"),
    (API, "POST", "/repos/o/r/issues?_method=DELETE"),
    (API, "GET", "/repos/o/r?%5F%6dethod=delete"),
    (API, "POST", "/gists"),
    (API, "POST", "/user/repos"),
    (API, "POST", "/repos/o/r/issues/1/sub_issues"),
    (API, "DELETE", "/repos/o/r/issues/1/sub_issue"),
    (API, "POST", "/repos/o/r/issues/1/dependencies/blocked_by"),
    (API, "POST", "/repos/o/r/dispatches"),
    (API, "PUT", "/repos/o/r/import"),
    (API, "POST", "/repos/o/r/pulls/1/codespaces"),
    (API, "POST", "/repos/o/r/git/refs/heads/main"),  # POST stands for PATCH there
    (WEB, "POST", "/o/r/git-upload-archive"),
    (WEB, "GET", "/o/r/objects/info/packs"),
    (WEB, "GET", "/o/r/HEAD"),
    ("uploads.github.com", "POST", "/repos/o/r/releases/1/assets?name=a&_method=DELETE"),
    ("uploads.github.com", "POST", "/repos/o/r/releases/\u0661/assets"),
    (API, "GET", "/graphql/../repos"),
    ("raw.githubusercontent.com", "GET", "/o/r"),
    ("raw.githubusercontent.com", "POST", "/o/r/main/a"),
    ("codeload.github.com", "GET", "/o/r/exe/main"),
    ("uploads.github.com", "POST", "/o/r/assets"),
    ("objects.githubusercontent.com", "DELETE", "/x"),
]


@pytest.mark.parametrize(("host", "method", "target", "operation", "repo"), ROUTES)
def test_a_request_is_for_one_repository_and_one_operation(host, method, target, operation, repo):
    route = classify(host, method, target)

    assert isinstance(route, Route), route
    assert (operation, repo) == (route.operation, route.repo)


@pytest.mark.parametrize(("host", "method", "target"), DENIED)
def test_what_is_unclear_or_administers_is_denied_even_where_everything_is_allowed(host, method, target):
    route = classify(host, method, target)
    verdict = route if isinstance(route, Verdict) else GitPolicy(("*",), None).route(route)
    if host == API and method == "GET" and "graphql" not in target:
        assert isinstance(route, Verdict) or verdict.allow  # read anything: that is what * says
    else:
        assert not verdict.allow


@pytest.mark.parametrize(
    "pattern", ["o/r", "O/R", "o/r.git", "github.com/o/r", "github.com/O/R.git", "o/*", "o/r*"]
)
def test_every_spelling_that_a_profile_may_have_of_a_repository_allows_it(pattern):
    grammar.repo(pattern)
    assert GitPolicy((pattern,), None).repository("o/r").allow
    assert not GitPolicy((pattern,), None).repository("p/r").allow


NARROW = GitPolicy(("o/r",), ("main", "refs/tags/v*"))


@pytest.mark.parametrize(
    ("host", "method", "target", "allow"),
    [
        (WEB, "GET", "/o/r/info/refs?service=git-upload-pack", True),
        (WEB, "GET", "/o/other/info/refs?service=git-upload-pack", False),
        (WEB, "POST", "/o/r/git-receive-pack", True),
        (API, "POST", "/graphql", False),
        (API, "GET", "/search/code?q=x", False),
        (API, "GET", "/repositories/12/issues", False),
        (API, "GET", "/gists", False),
        (API, "PATCH", "/repos/o/r/git/refs/heads/main", True),
        (API, "PATCH", "/repos/o/r/git/refs/heads%2Fdev", False),
        (API, "DELETE", "/repos/o/r/git/refs/tags/v1", True),
        (API, "DELETE", "/repos/o/r/git/refs/tags/x1", False),
        (API, "PUT", "/repos/o/r/pulls/1/merge", False),
        (API, "POST", "/repos/o/r/issues", True),
        ("uploads.github.com", "POST", "/repos/o/r/releases/1/assets", True),
        ("uploads.github.com", "POST", "/repos/o/q/releases/1/assets", False),
    ],
)
def test_a_narrow_policy_lets_its_repository_and_refs_pass_and_nothing_else(host, method, target, allow):
    route = classify(host, method, target)

    assert isinstance(route, Route)
    assert allow == NARROW.route(route).allow


def test_with_no_ref_allowed_nothing_that_writes_to_the_repository_passes():
    policy = GitPolicy(("o/r",), ())
    for host, method, target in (
        (WEB, "GET", "/o/r/info/refs?service=git-receive-pack"),
        (WEB, "POST", "/o/r/git-receive-pack"),
        (API, "POST", "/repos/o/r/git/blobs"),
        (API, "PUT", "/repos/o/r/contents/a"),
        ("uploads.github.com", "POST", "/repos/o/r/releases/1/assets"),
    ):
        route = classify(host, method, target)
        assert isinstance(route, Route)
        assert not policy.route(route).allow
    assert policy.route(Route("fetch", "o/r")).allow


segment = st.text(st.sampled_from(string.ascii_letters + string.digits + "%._-/\\;~ \x00é#?"), max_size=12)


@given(
    st.sampled_from(sorted(GIT_HOSTS)), st.sampled_from(["GET", "POST", "PUT"]), st.lists(segment, max_size=7)
)
def test_no_path_makes_the_classifier_fail_or_name_a_repository_that_is_not_in_it(host, method, parts):
    target = "/" + "/".join(parts)
    route = classify(host, method, target)
    if isinstance(route, Route) and route.repo:
        assert canonical_repo(route.repo) == route.repo
        owner, name = route.repo.split("/")
        assert f"/{owner}/{name}" in target.lower()


@given(st.lists(st.text(string.ascii_letters + string.digits + "-_. ", min_size=1, max_size=9), min_size=1))
def test_an_encoded_path_is_judged_like_the_plain_one(parts):
    plain = classify("raw.githubusercontent.com", "GET", "/o/r/main/" + "/".join(map(quote, parts)))
    encoded = ["".join(f"%{byte:02x}" for byte in part.encode()) for part in parts]
    assert plain == classify("raw.githubusercontent.com", "GET", "/o/r/main/" + "/".join(encoded))


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("refs/heads/main", True),
        ("refs/tags/v1.0", True),
        ("refs/heads/a/b-c_d", True),
        ("refs/heads/é", True),
        ("main", False),
        ("HEAD", False),
        ("refs/", False),
        ("refs//heads/x", False),
        ("refs/heads/../x", False),
        ("refs/heads/x.lock", False),
        ("refs/heads/x y", False),
        ("refs/heads/x\n", False),
        ("refs/heads/x\x00y", False),
        ("refs/heads/.x", False),
        ("refs/heads/x.", False),
        ("refs/heads/x/", False),
        ("refs/heads/x*", False),
        ("refs/heads/@{u}", False),
        ("refs/heads/" + "x" * 5000, False),
    ],
)
def test_only_well_formed_full_refs_are_refs(name, fits):
    assert fits == is_ref(name)


def policy(*hosts, repos=("o/r",), refs=None, mode="allowlist"):
    return NetworkPolicy.from_plan(NetworkPlan(hosts=hosts), git=GitPlan(mode, tuple(repos), refs))


def test_a_list_of_repositories_opens_githubs_hosts_on_443_only():
    rules = policy()
    for host in GIT_HOSTS:
        assert rules.name(host).allow
        assert rules.connect(host, 443).allow
        assert not rules.connect(host, 80).allow
        assert not rules.connect(host, 22).allow
    assert not policy(repos=()).name(WEB).allow
    assert not policy(mode="none").name(WEB).allow


@pytest.mark.parametrize(
    "name",
    [
        "gist.github.com",
        "gist.githubusercontent.com",
        "npm.pkg.github.com",
        "ghcr.io",
        "collector.github.com",
    ],
)
def test_hosts_of_github_without_a_repository_open_to_an_exact_rule_only(name):
    wide = (HostRule("github.com", "suffix"), HostRule("*", "any"))
    verdict = policy(*wide).connect(name, 443)
    assert (False, "builtin:git-host") == (verdict.allow, verdict.rule)
    assert policy(HostRule(name, "exact")).connect(name, 443).allow
    assert policy(*wide, repos=()).connect(name, 443).allow


def test_git_over_ssh_is_denied_whatever_is_listed():
    rules = policy(HostRule("ssh.github.com", "exact"), HostRule("*", "any"))
    assert "SSH" in rules.connect("ssh.github.com", 443).reason
    assert not rules.name("ssh.github.com").allow


@pytest.mark.parametrize(
    ("target", "method", "allow", "layer"),
    [
        ("github.com", "", True, "connect"),
        ("https://github.com/o/r", "", True, "git"),
        ("https://github.com/o/x", "", False, "git"),
        ("https://api.github.com/graphql", "POST", False, "git"),
        ("https://api.github.com/repos/o/r/forks", "POST", False, "git"),
        ("http://github.com/o/r", "", False, "connect"),
        ("github.com:22", "", False, "connect"),
        ("wss://github.com/o/r", "", False, "http"),
    ],
)
def test_explain_judges_github_by_the_repository_in_the_url(target, method, allow, layer):
    verdict = explain_target(EgressRules(policy()), target, method=method)

    assert (allow, layer) == (verdict.allow, verdict.layer), verdict
