"""The self-attack finds holes: against a "sandbox" without walls nearly every case fails, and none passes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from attrs import define, field
from hypothesis import given, strategies

from km_core.attack import CASES, ELSEWHERE, Attack, Canary, Target, bundle, host_addresses
from km_core.attack.checks import CHECKS, Subject
from km_core.attack.forms import address_forms
from km_core.cli.main import main
from km_core.config import Config
from km_core.control.substrate import Box
from km_core.plan import SandboxPlan
from km_core.plan.plan import HostRule, NetworkPlan
from km_core.policy import NetworkPolicy, explain_egress

LOOPBACK = ("127.0.0.1", "::1")
FROM_INSIDE = {case.id: case for case in CASES if not case.host}
# Not on a machine that others use: these look around on it, change groups, or speak to its links and resolvers.
HARMLESS = [
    case
    for case in FROM_INSIDE.values()
    if case.attempt
    not in {
        "escape",
        "leave_the_group",
        "keys",
        "host_sockets",
        "raw_packets",
        "other_resolvers",
        "denied_name",
    }
]
DIRECT = [
    "B-06 connected-udp",
    "B-44 ipv4",
    "B-44 v4-mapped",
    "B-45 udp",
    "B-47 fast-open",
    "B-52 proxy-variables",
]
BY_WAY_OF_THE_GATE = [
    "B-16 look-alike-asked",
    "B-17 brackets",
    "B-20 numbers",
    "B-21 embedded",
    "B-22 shared-space",
    "B-24 plain-http",
    "B-25 connect-unlisted",
    "B-26 relayed",
    "B-35 smuggling",
    "B-36 keep-alive",
]


def plan(*hosts: str) -> SandboxPlan:
    rules = tuple(HostRule(host, "exact", (80, 443)) for host in hosts)
    return SandboxPlan(
        profile="p", profile_digest="d", prefix="t", substrate="open", network=NetworkPlan(hosts=rules)
    )


@define
class Open:
    """A substrate without walls: what is run inside runs on the host."""

    capabilities = frozenset({"exec"})
    name = "open"
    instead: list[str] = field(factory=list)
    enforcement: str = ""

    def exec(self, box, argv, *, env, cwd, root, tty):
        return subprocess.call(self.instead or list(argv), cwd=cwd)

    def status(self, box):
        return {"running": True, "enforcement": self.enforcement, "gate": {}}


class OpenProxy:
    """A gate that believes everything: any target, any length, any second request; it dials loopback only."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(2)
            try:
                while self.answer(connection, connection.recv(65536)):
                    pass
            except (OSError, ValueError):
                return

    def answer(self, connection: socket.socket, data: bytes) -> bool:
        lines = data.splitlines()
        if not lines or b" " not in lines[0]:
            return False
        method, target = lines[0].split(b" ")[:2]
        authority = target.split(b"://")[-1].split(b"/")[0].decode("latin-1")
        if authority == "km.internal":
            connection.sendall(b"HTTP/1.1 200 OK\r\nX-Km-Gate: 1\r\nContent-Length: 2\r\n\r\nok")
            # Whatever follows the first empty line or chunk is another request to it.
            at = max(data.find(b"\r\n\r\nGET "), data.find(b"\r\n\r\nCONNECT "))
            return self.answer(connection, data[at + 4 :]) if at >= 0 else True
        if method == b"CONNECT":
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            data = connection.recv(65536)
        with self.dial(authority) as out:
            out.settimeout(1)
            out.sendall(data)
            connection.sendall(out.recv(4096))
        return False

    @staticmethod
    def dial(authority: str) -> socket.socket:
        host, _, port = authority.rpartition(":")
        host = host.strip("[]").rpartition("ffff:")[2]
        host = socket.inet_ntoa(socket.inet_aton(host)) if ":" not in host else host
        if not host.startswith("127.") and host != "::1":
            raise OSError("not here")
        return socket.create_connection((host, int(port)), 1)


@pytest.fixture
def canary():
    with (
        tempfile.TemporaryDirectory(prefix="kma") as directory,
        Canary(Path(directory), ports=()) as listening,
    ):
        yield listening


@pytest.fixture
def run(canary, tmp_path):
    """Run cases against an open substrate; returns outcome and detail by case."""

    def attack(*names, substrate=None, program="", tell=lambda result: None, addresses=LOOPBACK[:1], **hosts):
        config = Config(home=tmp_path, runtime_dir=tmp_path)
        (tmp_path / "audit").mkdir(exist_ok=True)
        box = Box(
            "t-1a2b3c4d", plan("allowed.test"), config, tmp_path, tmp_path, tmp_path / "audit", tmp_path
        )
        target = Target(substrate or Open(), box, {}, box.plan.digest(), addresses, **hosts)
        options = ({"program": program} if program else {}) | {"late_s": 0.05}
        cases = [case for case in CASES if case.id in names]
        assert len(cases) == len(names)
        return {f"{r.row} {r.name}": r for r in Attack(target, canary, tell, **options).run(cases)}

    return attack


def test_every_row_is_a_case_or_has_a_reason() -> None:
    assert {case.row for case in CASES} | set(ELSEWHERE) == {f"B-{number:02}" for number in range(1, 59)}
    assert {case.row for case in CASES} & set(ELSEWHERE) == set()
    assert len({case.id for case in CASES}) == len(CASES)
    assert all(case.attempt in CHECKS for case in CASES if case.host)


def test_every_attempt_is_in_the_program() -> None:
    source = bundle().rpartition("\nimport json, os")[0]
    done = subprocess.run(
        ["python3", "-"], input=source + "\nprint(*attempts)", capture_output=True, text=True, check=True
    )
    assert {case.attempt for case in FROM_INSIDE.values()} <= set(done.stdout.split())


def test_what_gets_out_directly_is_found(run) -> None:
    results = run(*[case.id for case in HARMLESS if case.control], addresses=LOOPBACK)
    assert [r for r in results.values() if r.result == "pass"] == []
    assert [results[name].detail[:13] for name in DIRECT] == ["it arrived at"] * len(DIRECT)


def test_a_gate_that_believes_too_much_is_found(run) -> None:
    proxy = OpenProxy()
    try:
        program = bundle().replace('("127.0.0.1", 3128)', f'("127.0.0.1", {proxy.port})')
        results = run(*BY_WAY_OF_THE_GATE, program=program)
    finally:
        proxy.listener.close()
    assert {name: r.result for name, r in results.items()} == dict.fromkeys(BY_WAY_OF_THE_GATE, "fail")


@pytest.mark.parametrize("name", ["B-33 foreign-cloud-key", "B-34 model-store"])
def test_a_gate_that_lets_vendors_hosts_pass_unopened_is_found(run, name) -> None:
    proxy = OpenProxy()
    try:
        program = bundle().replace('("127.0.0.1", 3128)', f'("127.0.0.1", {proxy.port})')
        (result,) = run(name, program=program, model="model.test", cloud="cloud.test").values()
        (skipped,) = run(name, program=program).values()
    finally:
        proxy.listener.close()
    assert result.result == "fail"
    assert (skipped.result, skipped.detail[:16]) == ("skipped", "needs a profile ")


def test_a_gate_that_does_not_answer_proves_nothing(run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        silent.close()
        program = bundle().replace('("127.0.0.1", 3128)', f'("127.0.0.1", {port})')
        (result,) = run("B-25 connect-unlisted", program=program).values()
    assert (result.result, result.detail) == ("skipped", "the gate does not answer as a proxy inside")


def test_an_attempt_that_does_not_run_to_its_end_is_a_failure(run) -> None:
    crashing = bundle().replace("attempts[name](args)", "sys.exit(3)")
    (result,) = run("B-49 sctp", program=crashing).values()
    assert (result.result, "did not run to its end (exit code 3)" in result.detail) == ("fail", True)


def test_an_attempt_that_takes_too_long_ends_and_takes_its_directory_with_it(tmp_path) -> None:
    endless = bundle().replace("attempts[name](args)", "signal.pause()")
    done = subprocess.run(
        ["python3", "-", "tcp", '{"token": "x", "limit_s": 1}'],
        input=endless,
        text=True,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert (done.returncode, list(tmp_path.iterdir())) == (3, [])


def test_an_attempt_that_tries_nothing_is_a_failure(run) -> None:
    (result,) = run("B-49 sctp", addresses=()).values()
    assert (result.result, result.detail) == ("fail", "the attempt tried nothing")


def test_where_there_is_no_python_nothing_is_claimed(run) -> None:
    results = run("B-44 ipv4", "B-51 inherited-sockets", substrate=Open(instead=["false"]))
    assert {r.result for r in results.values()} == {"skipped"}
    assert all("needs python3" in r.detail for r in results.values())


def test_what_arrives_late_turns_a_pass_into_a_failure(run, canary) -> None:
    told = []

    def late(result):
        told.append(result.result)
        if len(told) == 1:
            canary.arrivals.append(("tcp:1", given[-1]))

    given = []

    class Slow(Open):
        def exec(self, box, argv, **rest):
            if len(argv) > 3:
                given.append(argv[3].encode())
            line = '{"sent": 1, "failed": 0, "sent_to": [], "errors": []}'
            return subprocess.call(["sh", "-c", f"cat >/dev/null; echo '{line}'"])

    (result,) = run("B-49 sctp", substrate=Slow(), tell=late).values()
    assert told == ["pass", "fail"]
    assert (result.result, result.detail) == ("fail", "it arrived at tcp:1")


def test_a_denial_that_is_not_recorded_is_a_failure(run, tmp_path) -> None:
    class Answers(Open):
        def exec(self, box, argv, **rest):
            line = '{"sent": 1, "failed": 0, "sent_to": [], "errors": []}'
            return subprocess.call(["sh", "-c", f"cat >/dev/null; echo '{line}'"])

    (result,) = run("B-01 data-in-labels", substrate=Answers()).values()
    assert (result.result, result.detail) == ("fail", "nothing in the audit says so: token")


def test_a_sandbox_whose_enforcement_is_not_in_force_is_found(run) -> None:
    assert run("B-56 enforcement-in-force")["B-56 enforcement-in-force"].result == "fail"
    in_force = run("B-56 enforcement-in-force", substrate=Open(enforcement="tproxy"))
    assert in_force["B-56 enforcement-in-force"].result == "pass"


def test_another_plan_than_the_recorded_one_is_found(tmp_path) -> None:
    subject = Subject(
        plan(), plan("other.test").digest(), Config(home=tmp_path, runtime_dir=tmp_path), {}, ()
    )
    assert CHECKS["same_plan"](subject)
    assert CHECKS["closed_ranges"](subject) == []


def test_a_public_resolver_is_a_finding_unless_it_is_listed(tmp_path) -> None:
    def judge(rules):
        made = SandboxPlan("p", "d", "t", "open", network=NetworkPlan(hosts=rules))
        return CHECKS["public_resolvers"](
            Subject(made, "", Config(home=tmp_path, runtime_dir=tmp_path), {}, ())
        )

    assert judge((HostRule("*", "any", (443,)),)) == []
    assert judge((HostRule("dns.google", "exact", (443,)),)) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no sandbox to try"),
        (("t-1a2b3c4d", "--row", "B-99"), "no row 'B-99'"),
        (("t-1a2b3c4d", "--row", "B-13"), "malformed replies"),
    ],
)
def test_what_cannot_be_tried_is_a_usage_error_with_its_reason(arguments, words, capsys) -> None:
    assert main(["attack", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_list_names_every_case_and_every_row_that_is_elsewhere(capsys) -> None:
    assert main(["attack", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(case["row"], case["name"]) for case in listed["cases"]] == [(c.row, c.name) for c in CASES]
    assert listed["elsewhere"] == dict(ELSEWHERE)
    assert main(["attack", "--list", "--row", "B-44"]) == 0
    assert "B-45" not in capsys.readouterr().out


def test_this_hosts_addresses_are_known() -> None:
    assert {"127.0.0.1"} <= set(host_addresses())


@given(
    number=strategies.integers(min_value=1 << 24, max_value=(224 << 24) - 1),
    kind=strategies.sampled_from(["brackets", "dots-and-case", "encoded", "numbers", "embedded"]),
    port=strategies.integers(min_value=1, max_value=65535),
)
def test_no_form_of_an_address_is_allowed_by_rules_for_names(number: int, kind: str, port: int) -> None:
    policy = NetworkPolicy.from_plan(plan("allowed.test").network)
    for form in address_forms(kind, str(IPv4Address(number)), port, "allowed.test"):
        try:
            verdict = explain_egress(policy, f"http://{form}/")
        except ValueError:
            continue
        assert not verdict.allow, form
