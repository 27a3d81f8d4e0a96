"""Every client fetches from a host whose TLS passes unopened, from one that is opened, and over plain HTTP."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from standins.clients import OPENED, TOKEN, TUNNEL, archive_of, fetched, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from standins.clients import Sites
    from standins.world import Sandbox

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300), pytest.mark.usefixtures("nothing_refused")]
LOCAL_ONLY = pytest.mark.parametrize(
    "substrate", [pytest.param("local", marks=pytest.mark.namespaces)], indirect=True, scope="module"
)
"""For programs of the host's ``/usr``, which only the local substrate shows."""

URLS = (f"https://{TUNNEL}/", f"https://{OPENED}/", f"http://{TUNNEL}/")
HELLO = "hello from the stand-in origin\n"
LARGE = 8_000_000


def arrived_with_credential(sites: Sites) -> bool:
    return sites.opened.arrivals[-1].headers.get("authorization") == f"Bearer {TOKEN}"


def test_curl_fetches_reuses_its_connection_and_posts(box: Sandbox, sites: Sites) -> None:
    for url in URLS:
        outcome = box.run("curl", "-sS", url, f"{url}again").assert_ok()
        assert outcome.stdout == 2 * HELLO, url
    assert arrived_with_credential(sites)
    # More than a mebibyte makes curl ask first (Expect: 100-continue).
    script = f"head -c {LARGE} /dev/zero | curl -sS --data-binary @- https://{OPENED}/post"
    assert box.run("sh", "-c", script).assert_ok().stdout == HELLO
    assert len(sites.opened.arrivals[-1].body) == LARGE


def test_curl_downloads_as_many_bytes_as_there_are(box: Sandbox) -> None:
    for url in URLS:
        outcome = box.run("sh", "-c", f"curl -sS {url}bytes/{LARGE} | wc -c").assert_ok()
        assert int(outcome.stdout) == LARGE, url


@LOCAL_ONLY
def test_wget_fetches(box: Sandbox, sites: Sites) -> None:
    needs(box, "wget")
    for url in URLS:
        assert box.run("wget", "-q", "-O", "-", url).assert_ok().stdout == HELLO, url
    assert arrived_with_credential(sites)


def test_pythons_own_client_fetches(box: Sandbox, sites: Sites) -> None:
    source = (
        "import sys, urllib.request as u\nfor a in sys.argv[1:]: print(u.urlopen(a).read().decode(), end='')"
    )
    assert box.python(source, *URLS).assert_ok().stdout == len(URLS) * HELLO
    assert arrived_with_credential(sites)


@LOCAL_ONLY
def test_node_fetches_with_both_of_its_clients(box: Sandbox, sites: Sites) -> None:
    needs(box, "node")
    source = """
const get = url => new Promise((done, failed) => require(new URL(url).protocol.slice(0, -1)).get(url, answer => {
  let text = ''; answer.on('data', part => text += part).on('end', () => done(text)); }).on('error', failed));
(async () => {
  for (const url of process.argv.slice(1)) process.stdout.write(await (await fetch(url)).text() + await get(url));
})();
"""
    assert box.run("node", "-e", source, *URLS).assert_ok().stdout == 2 * len(URLS) * HELLO
    assert arrived_with_credential(sites)


JAVA = """
import java.net.*; import java.net.http.*; import java.nio.charset.StandardCharsets;
public class Fetch {
  public static void main(String[] urls) throws Exception {
    for (String url : urls) {
      var client = HttpClient.newHttpClient();
      var request = HttpRequest.newBuilder(URI.create(url)).build();
      System.out.print(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
      var post = HttpRequest.newBuilder(URI.create(url)).POST(HttpRequest.BodyPublishers.ofString("ping")).build();
      System.out.print(client.send(post, HttpResponse.BodyHandlers.ofString()).body());
      var connection = (HttpURLConnection) new URL(url).openConnection();
      System.out.print(new String(connection.getInputStream().readAllBytes(), StandardCharsets.UTF_8));
    }
  }
}
"""


@LOCAL_ONLY
def test_java_fetches_with_both_of_its_clients(box: Sandbox, sites: Sites) -> None:
    needs(box, "javac")
    box.put("Fetch.java", JAVA)
    outcome = box.run("java", "Fetch.java", *URLS, timeout_s=120).assert_ok()
    assert outcome.stdout == 3 * len(URLS) * HELLO
    assert arrived_with_credential(sites)


GO = """
package main

import ("fmt"; "io"; "net/http"; "os")

func main() {
	for _, url := range os.Args[1:] {
		answer, err := http.Get(url)
		if err != nil { fmt.Println(err); os.Exit(1) }
		body, _ := io.ReadAll(answer.Body)
		fmt.Print(string(body))
	}
}
"""


def test_go_fetches(box: Sandbox, sites: Sites, tmp_path: Path) -> None:
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("no go on this machine: an optional client")
    (tmp_path / "fetch.go").write_text(GO, encoding="utf-8")
    offline = {"GOPROXY": "off", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    places = {"GOCACHE": str(tmp_path / "cache"), "GOPATH": str(tmp_path / "path")}
    command = [compiler, "build", "-o", "fetch", "fetch.go"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | offline | places, check=True, timeout=200)
    unpack(box, archive_of(tmp_path / "fetch", "fetch"))
    assert box.run("./fetch", *URLS).assert_ok().stdout == len(URLS) * HELLO
    assert arrived_with_credential(sites)


@LOCAL_ONLY
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("ruby", ["-ropen-uri", "-e", "ARGV.each { |url| print URI.open(url).read }"]),
        ("php", ["-r", "foreach (array_slice($argv, 1) as $url) echo file_get_contents($url);", "--"]),
        (
            "perl",
            ["-MHTTP::Tiny", "-e", "for (@ARGV) { my $r = HTTP::Tiny->new->get($_); print $r->{content} }"],
        ),
    ],
)
def test_other_languages_fetch(box: Sandbox, program: str, arguments: list[str]) -> None:
    needs(box, program)
    # Perl's own client speaks TLS only with a module that is not a part of it.
    secure = program != "perl" or box.run("perl", "-MIO::Socket::SSL", "-e", "1").code == 0
    urls = URLS if secure else URLS[2:]
    assert box.run(program, *arguments, *urls).assert_ok().stdout == len(urls) * HELLO


def test_python_libraries_with_their_own_authorities_fetch(box: Sandbox, sites: Sites) -> None:
    """requests, httpx and aiohttp bring or make their own trust."""
    others = {"awscli", "bin", "boto3", "botocore"}
    unpack(box, archive_of(fetched("python/requests").parent, "site", without=others.__contains__))
    source = """
import asyncio, sys; sys.path.insert(0, "site")
import aiohttp, httpx, requests
async def third(url):
    async with aiohttp.ClientSession() as session, session.get(url) as answer: return await answer.text()
for url in sys.argv[1:]:
    print(requests.get(url).text, httpx.get(url).text, asyncio.run(third(url)), sep="", end="")
"""
    assert box.python(source, *URLS).assert_ok().stdout == 3 * len(URLS) * HELLO
    assert arrived_with_credential(sites)


def needs(box: Sandbox, program: str) -> None:
    """Skip where a program that not every machine has is missing inside."""
    if box.run("sh", "-c", f"command -v {program}").code != 0:
        pytest.skip(f"no {program} in the sandbox: an optional client")
