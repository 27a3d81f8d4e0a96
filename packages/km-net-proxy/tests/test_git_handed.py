"""URLs that GitHub handed out: exactly those, for their method, for their time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_net_proxy.git.handed import LFS_S, REDIRECT_S, HandedOut

HOST, CLOUD = "objects.githubusercontent.com", "github-cloud.s3.amazonaws.com"


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def test_a_redirect_counts_for_its_time_and_for_reading_only():
    clock = Clock()
    handed = HandedOut(clock)
    handed.redirected("o/r", f"https://{HOST}/a?b=c&d#fragment")
    clock.now += REDIRECT_S - 1
    for method, found in (("GET", True), ("HEAD", True), ("PUT", False), ("POST", False)):
        assert (handed.find(HOST, method, "/a?b=c&d") is not None) == found
    clock.now += 2
    assert handed.find(HOST, "GET", "/a?b=c&d") is None


@pytest.mark.parametrize(
    "url",
    [
        f"http://{HOST}/a",
        f"https://{HOST}:8443/a",
        f"https://{HOST}:x/a",
        f"https://eve@{HOST}/a",
        f"https://{HOST}.evil.test/a",
        f"https://evil.test/{HOST}/a",
        f"//{HOST}/a",
        "/a",
        f"https://{HOST}/b",
        f"https://{HOST}/a/",
        f"https://{HOST}/%61",
        f"https://{HOST}//a",
        f"https://{HOST}/x/../a",
        "https://[::1/a",
        f"https://{HOST}/\u0430",
        "",
    ],
)
def test_another_url_opens_nothing(url):
    handed = HandedOut()
    handed.redirected("o/r", url)
    assert handed.find(HOST, "GET", "/a") is None


def test_an_lfs_answer_gives_each_url_its_method_and_its_time():
    clock = Clock()
    handed = HandedOut(clock)
    actions = {
        name: {"href": f"https://{CLOUD}/{name}", "header": {"AUTHORIZATION": name}}
        for name in ("download", "upload", "verify", "delete")
    }
    handed.lfs("o/r", {"objects": [{"actions": actions}]})
    for name, method in (("download", "GET"), ("upload", "PUT"), ("verify", "POST")):
        assert handed.find(CLOUD, method, f"/{name}").repo == "o/r"
        others = {"GET", "PUT", "POST"} - {method}
        assert not [other for other in others if handed.find(CLOUD, other, f"/{name}")]
    assert handed.find(CLOUD, "DELETE", "/delete") is None
    clock.now += LFS_S + 1
    assert handed.find(CLOUD, "PUT", "/upload") is None


json_values = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5), st.just(f"https://{CLOUD}/up")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["objects", "actions", "upload", "href", "header"]), inner, max_size=4
        ),
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_answer_makes_the_reader_fail(answer):
    handed = HandedOut()
    handed.lfs("o/r", answer)
    handed.lfs("o/r", {"objects": [{"actions": {"upload": answer}}, answer]})


def test_numbers_are_the_repositorys_that_the_first_page_was_asked_of():
    clock = Clock()
    handed = HandedOut(clock)
    handed.linked("o/r", '<https://api.github.com/repositories/7/issues?page=2>; rel="next"')
    handed.linked("o/r", '<https://evil.test/repositories/8/issues?page=2>; rel="next"')
    assert ["o/r", None] == [handed.repository(number) for number in ("7", "8")]
    clock.now += REDIRECT_S + 1
    assert handed.repository("7") is None


def test_what_is_remembered_has_a_bound():
    handed = HandedOut()
    for number in range(9000):
        handed.redirected("o/r", f"https://{HOST}/{number}")
    assert handed.find(HOST, "GET", "/0") is None
    assert handed.find(HOST, "GET", "/8999") is not None
