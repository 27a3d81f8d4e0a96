"""Credentials by the operator's rules: put on, kept off, changed while connections are open."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import itertools
import json
import re
import zlib

import brotli
import pytest
from gate_rig import AI, WEB, FakeMeter, HostRule, Rig, answer, ok, post, run
from hypothesis import given
from hypothesis import strategies as st

from km_core.policy.ai_paths import stored_at
from km_core.secrets import CredentialRule, credential_value
from km_net_proxy.http.credentials import strip_fields, strip_query
from km_net_proxy.http.withheld import Withheld, forms

SECRET = "the-operators-own-token"
RULE = CredentialRule(WEB, "web-token", strip=("x-session",))
CALL = {"model": "m", "max_tokens": 100}


async def get(reader, writer, *fields, path="/a?b=1", host=WEB):
    lines = "".join(f"{field}\r\n" for field in fields)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
    return await answer(reader)


def rig(rule=RULE, **options):
    made = Rig(credentials=[rule] if rule else [], **options)
    made.kmd.secrets["web-token"] = SECRET
    return made


def test_a_host_with_a_rule_gets_the_operators_credential_and_nothing_of_the_clients():
    async def main():
        async with rig() as r:
            server = await r.serve(WEB, ok())
            await r.up()
            reader, writer = await r.tls(WEB)
            fields = (
                "Authorization: Bearer mine",
                "X_Api_Key: mine",
                "X-Session: mine",
                "Cookie: a=mine",
                "X-Kept: 1",
            )
            status, _, _ = await get(reader, writer, *fields, path="/a?b=1&token=mine&c=2")
            assert status == 200
            writer.close()
            head = server.requests[0][0]
            assert head.startswith(b"GET /a?b=1&c=2 HTTP/1.1\r\n")
            assert head.count(b"uthorization") == 1
            assert f"authorization: Bearer {SECRET}\r\n".encode() in head
            assert b"X-Kept: 1" in head
            assert b"mine" not in head
            assert SECRET not in json.dumps(r.events())
            assert SECRET not in repr(r.gate.context.secrets)

    run(main)


@pytest.mark.parametrize(
    "name",
    [
        "Authorization",
        "authorization",
        "X-Api-Key",
        "X_API_KEY",
        "X.Api.Key",
        "x~api~key",
        "apikey",
        "Api-Key",
        "X-Goog-Api-Key",
        "Ocp-Apim-Subscription-Key",
        "Private-Token",
        "Job-Token",
        "X-Auth-Token",
        "X-Auth-Key",
        "X-Access-Token",
        "X-Vault-Token",
        "Cf-Aig-Authorization",
        "CF-Access-Client-Secret",
        "Helicone-Auth",
        "X-Amz-Security-Token",
        "X-Forwarded-Access-Token",
        "X-Authentication",
        "Cookie",
        "Cookie2",
        "Proxy-Authorization",
        "X-Session",
    ],
)
def test_a_clients_credential_leaves_in_no_field(name):
    assert strip_fields([(name.encode(), b"mine")], RULE.injection) == []


def test_a_key_among_a_websockets_subprotocols_does_not_leave():
    name = b"Sec-WebSocket-Protocol"
    assert strip_fields([(name, b"realtime, openai-insecure-api-key.sk-mine")], RULE.injection) == []
    assert strip_fields([(name, b"graphql-ws")], RULE.injection) == [(name, b"graphql-ws")]


@pytest.mark.parametrize(
    "name",
    [
        "Accept",
        "Content-Type",
        "User-Agent",
        "Idempotency-Key",
        "Anthropic-Beta",
        "Anthropic-Version",
        "X-Stainless-Retry-Count",
        "Range",
        "If-None-Match",
        "X-GitHub-Api-Version",
        "Git-Protocol",
        "Session_id",
        "Originator",
    ],
)
def test_other_fields_pass_beside_a_credential(name):
    field = (name.encode(), b"x")
    assert strip_fields([field], RULE.injection) == [field]


@pytest.mark.parametrize(
    "member",
    [
        "key",
        "api_key",
        "api-key",
        "apiKey",
        "apikey",
        "access_token",
        "accessToken",
        "private_token",
        "token",
        "auth",
        "authorization",
        "client_secret",
        "id_token",
        "refresh_token",
        "session_key",
        "password",
        "signature",
        "X-Amz-Signature",
        "X-Amz-Credential",
        "X-Amz-Security-Token",
        "X-Goog-Signature",
        "sig",
        "%6bey",
        "k%65y",
        "+key",
        "api%5Fkey",
        "token[]",
        "subscription-key",
    ],
)
def test_a_clients_credential_leaves_in_no_member_of_the_query(member):
    assert strip_query(f"/a?b=1&{member}=mine&c=2") == "/a?b=1&c=2"
    assert strip_query(f"/a?{member}=mine") == "/a"
    assert strip_query(f"/a?b=1;{member}=mine&c=2") == "/a?c=2"


@pytest.mark.parametrize(
    "member", ["page_token", "pageToken", "next_token", "max_tokens", "keyword", "q", "monkey"]
)
def test_members_that_only_sound_like_a_credential_pass(member):
    assert strip_query(f"/a?{member}=x") == f"/a?{member}=x"


def test_a_place_that_breaks_ends_the_use_of_what_it_gave():
    async def main():
        async with rig() as r:
            server = await r.serve(WEB, ok())
            await r.up()
            reader, writer = await r.tls(WEB)
            assert (await get(reader, writer))[0] == 200
            r.kmd.broken = "the file of secrets may be read by others"
            await asyncio.sleep(1.2)
            status, _, body = await get(reader, writer)
            writer.close()
            assert (status, json.loads(body)["error"]) == (403, "credential_unavailable")
            assert b"km secrets get web-token" in body
            assert b"by others" not in body
            assert len(server.requests) == 1

    run(main)


BODY = json.dumps(CALL).encode()
HOSTILE = {
    "both fields": ("/v1/messages", "x-api-key: mine\r\nAuthorization: Bearer mine\r\n"),
    "repeated fields": ("/v1/messages", "x-api-key: mine\r\nX-Api-Key: mine\r\nx-api-key:mine\r\n"),
    "other spellings": ("/v1/messages", "X_API_KEY: mine\r\nX.Api.Key: mine\r\nAPI-KEY:\tmine\r\n"),
    "the query": ("/v1/messages?key=mine&api_key=mine&x=1&Api%2DKey=mine;token=mine", ""),
    "an absolute target": (f"https://{AI}/v1/messages?access_token=mine", ""),
    "cookies and proxies": ("/v1/messages", "Cookie: k=mine\r\nProxy-Authorization: Basic mine\r\n"),
    "the gate's field as hop-by-hop": ("/v1/messages", "Connection: x-api-key, authorization\r\n"),
    "hop-by-hop with a key": ("/v1/messages", "Connection: x-mine\r\nX-Mine: mine\r\nTE: mine\r\n"),
    "subprotocols": ("/v1/messages", "Sec-WebSocket-Protocol: openai-insecure-api-key.mine\r\n"),
    "vendors' other names": ("/v1/messages", "x-goog-api-key: mine\r\nX-Amz-Security-Token: mine\r\n"),
}


@pytest.mark.parametrize("how", HOSTILE)
@pytest.mark.parametrize("chunked", [False, True])
def test_no_form_of_a_clients_key_reaches_a_model_host_and_the_operators_always_does(how, chunked):
    target, fields = HOSTILE[how]

    async def main():
        async with Rig() as r:
            server = await r.serve(AI, ok(b"{}"))
            await r.up()
            reader, writer = await r.tls(AI)
            head = f"POST {target} HTTP/1.1\r\nHost: {AI}\r\nContent-Type: application/json\r\n{fields}"
            if chunked:
                body = b"%x\r\n%b\r\n0\r\nX-Api-Key: mine\r\n\r\n" % (len(BODY), BODY)
                writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body)
            else:
                writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
            assert (await answer(reader))[0] == 200
            writer.close()
            ((seen, body),) = server.requests
            assert b"mine" not in seen.lower() + body
            assert seen.lower().count(b"x-api-key: ") == 1
            assert r.kmd.secrets["anthropic-api-key"].encode() in seen

    run(main)


@pytest.mark.parametrize(
    "line",
    [
        f"GET https://mine@{AI}/v1/models",
        f"GET https://mine:mine@{AI}/v1/models",
        "TRACE /v1/models",
        "CONNECT /v1/models",
        "GET /v1/models#mine",
    ],
)
def test_targets_and_methods_that_carry_a_key_or_show_one_are_refused(line):
    async def main():
        async with Rig() as r:
            server = await r.serve(AI, ok(b"{}"))
            await r.up()
            reader, writer = await r.tls(AI)
            writer.write(f"{line} HTTP/1.1\r\nHost: {AI}\r\n\r\n".encode())
            assert (await answer(reader))[0] in {400, 405}
            writer.close()
            assert not server.requests

    run(main)


def test_a_template_may_ask_for_basic():
    async def main():
        async with rig(CredentialRule(WEB, "web-token", template="Basic {basic:x-access-token}")) as r:
            server = await r.serve(WEB, ok())
            await r.up()
            reader, writer = await r.tls(WEB)
            await get(reader, writer)
            writer.close()
            value = server.requests[0][0].split(b"authorization: Basic ")[1].split(b"\r\n")[0]
            assert base64.b64decode(value) == f"x-access-token:{SECRET}".encode()

    run(main)


def test_a_host_without_a_rule_is_passed_on_unopened():
    async def main():
        async with rig() as r:
            await r.serve(WEB, ok())
            await r.up()
            assert not r.gate.context.intercepts("other.test")
            assert not r.gate.context.authority.signs_for("other.test")
            assert r.gate.context.authority.signs_for(WEB)

    run(main)


def test_the_credential_is_not_sent_in_the_clear():
    async def main():
        async with rig() as r:
            server = await r.serve(WEB, ok(), tls=False)
            await r.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", r.front(WEB, 80))
            status, _, body = await get(reader, writer)
            writer.close()
            assert status == 403
            assert b"https" in body
            assert not server.requests

    run(main)


def test_a_missing_secret_is_refused_with_the_command_that_sets_it():
    async def main():
        async with rig() as r:
            server = await r.serve(WEB, ok())
            del r.kmd.secrets["web-token"]
            await r.up()
            reader, writer = await r.tls(WEB)
            status, _, body = await get(reader, writer)
            assert (status, json.loads(body)["error"]) == (403, "credential_missing")
            assert b"km secrets set web-token" in body
            r.kmd.secrets["web-token"] = SECRET
            assert (await get(reader, writer))[0] == 200
            writer.close()
            assert len(server.requests) == 1
            assert "builtin:credential" in {event.get("rule") for event in r.events()}

    run(main)


def test_a_rotation_is_in_effect_within_two_seconds_on_an_open_connection():
    async def main():
        async with rig() as r:
            server = await r.serve(WEB, ok())
            await r.up()
            reader, writer = await r.tls(WEB)
            for _ in range(5):
                assert (await get(reader, writer))[0] == 200
            asked = [op for op, _ in r.kmd.calls if op == "secret.for"]
            r.kmd.secrets["web-token"] = "the-next-one"
            await asyncio.sleep(1.5)
            assert (await get(reader, writer))[0] == 200
            del r.kmd.secrets["web-token"]
            await asyncio.sleep(1.5)
            assert (await get(reader, writer))[0] == 403
            writer.close()
            heads = [head for head, _ in server.requests]
            assert all(SECRET.encode() in head for head in heads[:5])
            assert b"the-next-one" in heads[5]
            assert asked == ["secret.for"]
            stamps = [args for op, args in r.kmd.calls if op == "secret.stamp"]
            assert {args["host"] for args in stamps} == {WEB}

    run(main)


def test_a_lost_control_plane_keeps_the_credential_for_its_lease_and_gives_no_new_one():
    async def main():
        async with rig() as r:
            await r.serve(WEB, ok())
            await r.up()
            reader, writer = await r.tls(WEB)
            assert (await get(reader, writer))[0] == 200
            await r.kmd.stop()
            await asyncio.sleep(1.2)
            assert (await get(reader, writer))[0] == 200
            r.gate.context.secrets._held.clear()
            status, _, body = await get(reader, writer)
            writer.close()
            assert (status, json.loads(body)["error"]) == (503, "control_plane_unavailable")

    run(main)


def test_a_compatible_model_host_gets_the_key_of_its_rule():
    class Compatible(FakeMeter):
        name = "openai-compatible"
        hosts = ("alt.test",)
        injection = None

    async def main():
        rule = CredentialRule("alt.test", "web-token", header="x-key", template="{secret}")
        async with rig(
            rule, hosts=[HostRule("alt.test", "exact")], meter={"openai-compatible": Compatible()}
        ) as r:
            server = await r.serve("alt.test", ok(b"{}"))
            await r.up()
            reader, writer = await r.tls("alt.test")
            writer.write(post(CALL, host="alt.test", extra="Authorization: Bearer mine\r\n"))
            assert (await answer(reader))[0] == 200
            writer.close()
            head = server.requests[0][0]
            assert f"x-key: {SECRET}".encode() in head
            assert b"mine" not in head

    run(main)


def test_a_rule_outweighs_what_the_meter_of_its_host_says():
    async def main():
        async with rig(CredentialRule(AI, "web-token")) as r:
            server = await r.serve(AI, ok(b"{}"))
            await r.up()
            reader, writer = await r.tls(AI)
            writer.write(post(CALL, extra="X-Api-Key: mine\r\n"))
            assert (await answer(reader))[0] == 200
            writer.close()
            assert f"authorization: Bearer {SECRET}".encode() in server.requests[0][0]
            assert b"api-key" not in server.requests[0][0].lower()

    run(main)


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files/file-1/content", "/v1//files", "/v1/%66iles"])
def test_files_of_a_model_host_are_refused_with_or_without_a_ceiling(path):
    async def main():
        for limit in (None, 10**9):
            async with Rig(limit=limit) as r:
                server = await r.serve(AI, ok(b"{}"))
                await r.up()
                reader, writer = await r.tls(AI)
                status, _, body = await get(reader, writer, path=path, host=AI)
                writer.close()
                assert status == 403
                assert "keeps what is sent" in json.loads(body)["error"]["message"]
                assert not server.requests
                assert "builtin:ai_path_stores_data" in {event.get("rule") for event in r.events()}

    run(main)


@pytest.mark.parametrize(
    ("target", "stored"),
    [
        ("/v1/messages", None),
        ("/v1/messages?beta=true", None),
        ("/v1/models/files", None),
        ("/openai/deployments/files/chat/completions", None),
        ("/v1/messages/batches", "/batches"),
        ("/v1/FILES", "/files"),
        ("/openai/v1/vector_stores/x", "/vector_stores"),
        ("/v1/organization/usage", "/organization"),
        ("/v1/models/../files", "this path"),
        ("/v1/models/x/files", "/files"),
    ],
)
def test_a_path_that_names_a_store_is_told_from_one_that_does_not(target, stored):
    assert stored_at(target) == stored


@pytest.mark.parametrize(
    ("method", "target", "stored"),
    [
        ("POST", "/v1/chat/completions", None),
        ("POST", "/openai/deployments/chat/completions", None),
        ("GET", "/v1/chat/completions?limit=100", "/chat/completions"),
        ("GET", "/v1/chat/completions/id/messages", "/chat/completions"),
        ("POST", "/v1/chat/completions/id", "/chat/completions"),
        ("GET", "/v1/responses/resp_1", None),
        ("POST", "/v1/realtime/client_secrets", "/client_secrets"),
        ("POST", "/v1/realtime/transcription_sessions", "/transcription_sessions"),
        ("POST", "/api/oauth/claude_cli/create_api_key", "/create_api_key"),
        ("GET", "/v1/models", None),
    ],
)
def test_answers_that_are_kept_and_keys_that_are_handed_out_are_no_model_calls(method, target, stored):
    assert stored_at(target, method) == stored


async def echo(head, body, writer):
    """Show the request back, in the coding and the pieces that it asks for."""
    lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
    lines = {name.lower(): value for name, value in lines.items()}
    coding = lines.get(b"x-coding", b"")
    shown = {b"": lambda data: data, b"gzip": gzip.compress, b"br": brotli.compress}.get(
        coding, lambda data: data
    )(b"you sent:\r\n" + head * 3)
    name = b"Content-Encoding: " + coding + b"\r\n" if coding else b""
    cookie = b"Set-Cookie: session=of-the-operator\r\n"
    location = (
        cookie + b"Location: https://elsewhere.test/?t=" + lines[b"authorization"].split(b" ")[1] + b"\r\n"
    )
    if b"x-pieces" in lines:
        writer.write(b"HTTP/1.1 302 Found\r\n" + location + name + b"Transfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(shown), 7):
            writer.write(b"%x\r\n%b\r\n" % (len(shown[at : at + 7]), shown[at : at + 7]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    else:
        head = b"HTTP/1.1 302 Found\r\n" + location + name + b"Content-Length: %d\r\n\r\n" % len(shown)
        writer.write(head + shown)


@pytest.mark.parametrize("pieces", ["", "X-Pieces: 1"])
@pytest.mark.parametrize("template", ["Bearer {secret}", "Basic {basic:u}"])
def test_what_a_server_shows_of_the_credential_does_not_reach_the_sandbox(pieces, template):
    async def main():
        async with rig(CredentialRule(WEB, "web-token", template=template)) as r:
            server = await r.serve(WEB, echo)
            await r.up()
            for _ in range(2):
                reader, writer = await r.tls(WEB)
                fields = ["Accept-Encoding: gzip, br"] + ([pieces] if pieces else [])
                status, fields, body = await get(reader, writer, *fields)
                writer.close()
                sent = credential_value(template, SECRET).rpartition(" ")[2]
                assert status == 302
                assert "set-cookie" not in fields
                assert fields["location"] == "https://elsewhere.test/?t=" + "*" * len(sent)
                assert body.startswith(b"you sent:\r\nGET /a?b=1 HTTP/1.1\r\n")
                assert body.count(b"*" * len(sent)) == 3
                assert sent.encode() not in body
                assert body.endswith(b"\r\n\r\n")
            head = server.requests[0][0]
            assert sent.encode() in head
            assert b"ccept-Encoding: identity\r\n" in head
            assert b"gzip" not in head
            kinds = [event["kind"] for event in r.events()]
            assert kinds.count("credential_withheld") == 2

    run(main)


@pytest.mark.parametrize("coding", ["gzip", "br", "unheard-of"])
@pytest.mark.parametrize("pieces", ["", "X-Pieces: 1"])
def test_an_answer_in_a_coding_that_shows_the_credential_breaks_off(coding, pieces):
    async def main():
        async with rig() as r:
            await r.serve(WEB, echo)
            await r.up()
            reader, writer = await r.tls(WEB)
            lines = "".join(f"{line}\r\n" for line in (f"X-Coding: {coding}", pieces) if line)
            writer.write(f"GET /a HTTP/1.1\r\nHost: {WEB}\r\nConnection: close\r\n{lines}\r\n".encode())
            seen = b""
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    seen += data
            writer.close()
            assert SECRET.encode() not in seen
            body = seen.partition(b"\r\n\r\n")[2]
            if coding == "unheard-of":
                assert seen.startswith(b"HTTP/1.1 502")
            elif not pieces:
                assert body == b""
            else:
                assert not body.endswith(b"0\r\n\r\n")
                passed = bytearray()
                for size, data in re.findall(
                    rb"([0-9a-f]+)\r\n(.*?)\r\n(?=[0-9a-f]+\r\n|\Z)", body, re.DOTALL
                ):
                    assert len(data) == int(size, 16)
                    passed += data
                reader = zlib.decompressobj(31) if coding == "gzip" else brotli.Decompressor()
                plain = (reader.decompress if coding == "gzip" else reader.process)(bytes(passed))
                assert SECRET[:4].encode() not in plain

    run(main)


@given(
    st.lists(
        st.sampled_from([b"the-operators-own-token", b"the-op", b"t", b"token", b"x", b"the-the-"]),
        max_size=12,
    ),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_however_a_body_is_cut_the_credential_is_overwritten_and_nothing_else(parts, cuts):
    body, told = b"".join(parts), []
    tap = Withheld(forms(f"Bearer {SECRET}", SECRET), lambda: told.append(1))
    out, at = b"", 0
    for cut in itertools.cycle(cuts):
        if at >= len(body):
            break
        out += tap.feed(body[at : at + cut])
        at += cut
    out += tap.end()
    assert out == body.replace(SECRET.encode(), b"*" * len(SECRET))
    assert told == ([1] if SECRET.encode() in body else [])
