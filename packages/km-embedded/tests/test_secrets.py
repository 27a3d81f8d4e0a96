"""Secrets: sealed at rest, handed out by name and only where the plan calls for them."""

from __future__ import annotations

import sys

import pytest
from attrs import evolve, frozen

from km_core.errors import ControlError, GuardError, NotFoundError, PlanError, UsageError
from km_core.plan import GitPlan, HostRule, NetworkPlan, SandboxPlan
from km_core.secrets import CommandSource, CredentialRule, EnvFileSource
from km_core.types import InjectionRule
from km_embedded.credentials import PlanSecrets

A = "sb-0000000a"
VALUE = "sk-very-secret-0123456789"


@frozen
class FakeMeter:
    name: str
    hosts: tuple[str, ...]
    injection: InjectionRule | None


METERS = (
    FakeMeter("one", ("api.one.example",), InjectionRule("one-key", (), "x-api-key", "{secret}")),
    FakeMeter("two", ("api.two.example",), InjectionRule("two-key", (), "authorization", "Bearer {secret}")),
    FakeMeter("free", ("api.free.example",), None),
)


def plan(*hosts):
    rules = tuple(HostRule(host, "exact", source=host) for host in hosts)
    return SandboxPlan("goose", "", "sb", "local", network=NetworkPlan(hosts=rules))


def store(bench, stored, digest=None):
    directory = bench.config.sandbox_dir(A)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(stored.to_json())
    bench.running(A, plan_digest=stored.digest() if digest is None else digest)


@pytest.fixture
def keys(make_bench):
    bench = make_bench(secrets_for=PlanSecrets(meters=lambda: METERS))
    for name in ("one-key", "two-key", "github-token"):
        bench.operator("secret.set", name=name, value=f"{VALUE}-{name}")
    return bench


def test_a_secret_is_handed_out_only_for_hosts_of_the_plan(keys):
    store(keys, plan("api.one.example", "example.org"))
    names = ["one-key", "two-key", "github-token", "nothing"]
    assert keys.sandbox(A, "secret.for", names=names) == {"one-key": f"{VALUE}-one-key"}
    event = keys.events(A)[-1]
    assert (event["kind"], event["names"]) == ("secret_released", ["one-key"])


def test_nothing_is_handed_out_when_no_host_calls_for_it(keys):
    store(keys, plan("example.org"))
    assert keys.sandbox(A, "secret.for", names=["one-key"]) == {}


def test_a_plan_that_opens_the_name_for_another_port_only_gets_no_secret(keys):
    rules = (HostRule("api.one.example", "exact", ports=(8443,), source="x"),)
    store(keys, evolve(plan(), network=NetworkPlan(hosts=rules)))
    assert keys.sandbox(A, "secret.for", names=["one-key"]) == {}


def test_a_plan_that_was_changed_since_gets_nothing(keys):
    store(keys, plan("api.one.example", "api.two.example"), digest=plan("api.one.example").digest())
    with pytest.raises(GuardError, match="not the one"):
        keys.sandbox(A, "secret.for", names=["one-key"])


def test_without_a_readable_plan_nothing_is_handed_out(keys):
    keys.running(A)
    with pytest.raises(PlanError):
        keys.sandbox(A, "secret.for", names=["one-key"])
    path = keys.config.sandbox_dir(A)
    path.mkdir(parents=True)
    for text in ("[]", "{}", "nonsense"):
        (path / "plan.json").write_text(text)
        with pytest.raises(PlanError):
            keys.sandbox(A, "secret.for", names=["one-key"])


def test_the_installed_meters_decide_when_nothing_else_is_said(bench):
    assert PlanSecrets()(plan("example.org").to_data()) == set()
    listed = evolve(plan("example.org"), git=GitPlan("allowlist", ("o/r",)))
    assert PlanSecrets()(listed.to_data()) == {"github-token"}


def test_no_file_holds_a_value_and_no_answer_lists_one(keys):
    store(keys, plan("api.one.example"))
    keys.sandbox(A, "secret.for", names=["one-key"])
    listed = keys.operator("secret.list")
    assert [item["name"] for item in listed] == ["github-token", "one-key", "two-key"]
    assert all(
        set(item) == {"name", "updated_at", "fingerprint", "source", "last_used_at", "used"}
        for item in listed
    )
    assert VALUE not in repr(listed)
    keys.stop()
    for path in keys.config.home.rglob("*"):
        if path.is_file():
            assert VALUE.encode() not in path.read_bytes(), path
    keys.start()
    assert (keys.config.home / "secret.key").stat().st_mode & 0o777 == 0o600
    assert VALUE not in repr(keys.lines)


def test_a_fingerprint_tells_values_apart_and_is_not_a_plain_hash(keys):
    import hashlib

    def fingerprint():
        return next(i["fingerprint"] for i in keys.operator("secret.list") if i["name"] == "one-key")

    first = fingerprint()
    assert len(first) == 8
    assert first != hashlib.sha256(f"{VALUE}-one-key".encode()).hexdigest()[:8]
    keys.operator("secret.set", name="one-key", value="another")
    assert fingerprint() != first
    keys.operator("secret.set", name="one-key", value=f"{VALUE}-one-key")
    assert fingerprint() == first


def test_a_deleted_secret_is_gone_and_its_name_is_evidence(keys):
    store(keys, plan("api.one.example"))
    keys.operator("secret.delete", name="one-key")
    assert keys.sandbox(A, "secret.for", names=["one-key"]) == {}
    with pytest.raises(NotFoundError):
        keys.operator("secret.delete", name="one-key")
    event = keys.events("host")[-1]
    assert (event["kind"], event["name"]) == ("secret_deleted", "one-key")


def test_rows_swapped_in_the_database_are_seen(keys):
    store(keys, plan("api.one.example"))
    with keys.service.db.transaction():
        keys.service.db.run(
            "UPDATE secrets SET sealed = (SELECT sealed FROM secrets WHERE name = 'two-key') WHERE name = 'one-key'"
        )
    with pytest.raises(ControlError, match="cannot be opened"):
        keys.sandbox(A, "secret.for", names=["one-key"])


def test_a_lost_key_is_not_replaced_behind_the_operators_back(keys):
    store(keys, plan("api.one.example"))
    keys.stop()
    (keys.config.home / "secret.key").unlink()
    keys.start()
    with pytest.raises(ControlError, match="missing"):
        keys.sandbox(A, "secret.for", names=["one-key"])
    with pytest.raises(ControlError, match="missing"):
        keys.operator("secret.set", name="three-key", value="x")
    for name in ("one-key", "two-key", "github-token"):
        keys.operator("secret.delete", name=name)
    keys.operator("secret.set", name="three-key", value="x")


def test_another_key_opens_nothing(keys):
    store(keys, plan("api.one.example"))
    keys.stop()
    path = keys.config.home / "secret.key"
    path.write_bytes(bytes(32))
    keys.start()
    with pytest.raises(ControlError, match="cannot be opened") as caught:
        keys.sandbox(A, "secret.for", names=["one-key"])
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("name", ["", "Upper", "../x", "a" * 65, "a b"])
def test_a_name_is_a_name(keys, name):
    with pytest.raises(UsageError):
        keys.operator("secret.set", name=name, value="x")


def stamp(bench, name="one-key", host="api.one.example", box=A):
    return bench.sandbox(box, "secret.stamp", name=name, host=host)["stamp"]


def test_a_stamp_changes_with_the_value_and_is_empty_where_nothing_is_handed_out(keys):
    store(keys, plan("api.one.example"))
    first = stamp(keys)
    assert first
    assert stamp(keys) == first
    assert VALUE not in first
    assert (stamp(keys, "two-key"), stamp(keys, "nothing")) == ("", "")
    keys.operator("secret.rotate", name="one-key", value="another")
    assert stamp(keys) not in {"", first}
    keys.operator("secret.delete", name="one-key")
    assert stamp(keys) == ""


def test_a_rotation_needs_an_old_value_and_a_new_one_and_is_evidence(keys):
    changed = keys.operator("secret.rotate", name="one-key", value="another")
    assert changed["before"] != changed["after"]
    event = keys.events("host")[-1]
    assert (event["kind"], event["name"], event["after"]) == ("secret_rotated", "one-key", changed["after"])
    with pytest.raises(GuardError, match="already has"):
        keys.operator("secret.rotate", name="one-key", value="another")
    with pytest.raises(NotFoundError):
        keys.operator("secret.rotate", name="three-key", value="x")
    with pytest.raises(UsageError, match="new value"):
        keys.operator("secret.rotate", name="one-key")


def test_where_a_secret_was_used_last_is_known_and_kept(keys):
    store(keys, plan("api.one.example"))
    assert keys.operator("secret.show", name="one-key")["last_used_at"] is None
    stamp(keys)
    keys.clock.now += 60
    stamp(keys, host="alt.one.example")
    shown = keys.operator("secret.show", name="one-key")
    assert [(use["sandbox"], use["host"]) for use in shown["used"]] == [
        (A, "alt.one.example"),
        (A, "api.one.example"),
    ]
    assert shown["last_used_at"] == keys.clock.now
    assert VALUE not in repr(shown)
    keys.stop()
    keys.start()
    assert keys.operator("secret.show", name="one-key")["used"] == shown["used"]
    keys.operator("secret.delete", name="one-key")
    with pytest.raises(NotFoundError):
        keys.operator("secret.show", name="one-key")


def test_uses_are_bounded(keys):
    store(keys, plan("api.one.example"))
    for number in range(80):
        keys.clock.now += 1
        stamp(keys, host=f"h{number}.example")
    used = keys.operator("secret.show", name="one-key")["used"]
    assert len(used) == 50
    assert used[0]["host"] == "h79.example"


def configured(make_bench, **config):
    bench = make_bench(secrets_for=PlanSecrets(meters=lambda: METERS))
    bench.stop()
    bench.config = evolve(bench.config, **config)
    bench.start()
    return bench


def test_a_secret_of_a_file_is_read_when_it_changes_and_never_stored(make_bench, tmp_path):
    path = tmp_path / "keys.env"
    path.write_text(f"K={VALUE}\n")
    path.chmod(0o600)
    bench = configured(make_bench, secrets={"one-key": EnvFileSource(path, "K")})
    store(bench, plan("api.one.example"))
    first = stamp(bench)
    assert bench.sandbox(A, "secret.for", names=["one-key"]) == {"one-key": VALUE}
    path.write_text("K=another-value\n")
    assert stamp(bench) not in {"", first}
    assert bench.sandbox(A, "secret.for", names=["one-key"]) == {"one-key": "another-value"}
    (listed,) = bench.operator("secret.list")
    assert (listed["source"], listed["updated_at"]) == ("env_file", None)
    with pytest.raises(GuardError, match="outside km"):
        bench.operator("secret.set", name="one-key", value="x")
    path.chmod(0o644)
    with pytest.raises(ControlError, match="owner only"):
        stamp(bench)
    bench.stop()
    for file in bench.config.home.rglob("*"):
        if file.is_file():
            assert b"another-value" not in file.read_bytes()
    bench.start()


def test_a_secret_of_a_command_is_asked_for_again_on_demand(make_bench, tmp_path):
    path = tmp_path / "value"
    path.write_text(VALUE)
    command = CommandSource((sys.executable, "-c", f"print(open({str(path)!r}).read())"))
    bench = configured(make_bench, secrets={"one-key": command})
    store(bench, plan("api.one.example"))
    first = stamp(bench)
    path.write_text("another-value")
    assert stamp(bench) == first
    changed = bench.operator("secret.rotate", name="one-key")
    assert changed["before"] != changed["after"]
    assert stamp(bench) not in {"", first}
    assert bench.sandbox(A, "secret.for", names=["one-key"]) == {"one-key": "another-value"}
    path.unlink()
    with pytest.raises(ControlError, match="gave none"):
        bench.operator("secret.rotate", name="one-key")


def test_a_rule_hands_out_its_secret_to_plans_that_reach_its_host_only():
    rules = [CredentialRule("web.example", "web-key"), CredentialRule("api.one.example", "own-key")]
    wanted = PlanSecrets(meters=lambda: METERS, rules=lambda: rules)
    assert wanted(plan("web.example").to_data()) == {"web-key"}
    assert wanted(plan("api.one.example", "api.two.example").to_data()) == {"own-key", "two-key"}
    assert wanted(plan("other.example").to_data()) == set()


def test_a_rule_that_is_written_later_counts_at_once(make_bench):
    bench = make_bench()
    bench.operator("secret.set", name="web-key", value=VALUE)
    store(bench, plan("web.example"))
    assert bench.sandbox(A, "secret.for", names=["web-key"]) == {}
    (bench.config.home / "config.yaml").write_text("credentials:\n- {host: web.example, secret: web-key}\n")
    assert bench.sandbox(A, "secret.for", names=["web-key"]) == {"web-key": VALUE}
    assert stamp(bench, "web-key", "web.example")
