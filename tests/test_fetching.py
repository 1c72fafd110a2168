"""Pictures by address: only from where the operator said, however the address is written. Nothing leaves this machine.

Every test aims at servers on 127.0.0.1 that count who comes, or at names under `.invalid`, which exist nowhere.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from serve.fetching import Errand, Hosts, is_public
from vlchat.errors import ImageError, VLChatError

Answer = Callable[[BaseHTTPRequestHandler], None]


class Canary(ThreadingHTTPServer):
    """Counts connections, keeps what was asked, and answers by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.connections = 0
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.answers: dict[str, Answer] = {}
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


class _Handler(BaseHTTPRequestHandler):
    server: Canary

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.answers.get(self.path, plain(b"a picture"))(self)

    def log_message(self, *_: Any) -> None:
        pass


def plain(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(body)

    return answer


def by_drops(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.end_headers()
    try:
        while True:
            to.wfile.write(b".")
            time.sleep(0.05)
    except OSError:  # who asked has gone
        pass


def canaries() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.shutdown()
    canary.server_close()


canary = pytest.fixture(canaries)
other = pytest.fixture(canaries)


def refused(errand: Errand, url: str) -> str:
    with pytest.raises(ImageError) as caught:
        errand.fetch(url)
    assert caught.value.status in (400, 413)
    told = str(caught.value)
    assert "127.0.0.1" not in told and "://" not in told and "invalid" not in told
    return told


def test_a_file_comes_from_a_host_that_is_allowed(canary: Canary) -> None:
    errand = Errand(Hosts([canary.host]))
    assert errand.fetch(f"http://{canary.host}/one.png?size=2#part") == b"a picture"
    path, headers = canary.asked[0]
    assert path == "/one.png?size=2" and headers["Host"] == canary.host
    assert headers["Accept-Encoding"] == "identity" and not {"Cookie", "Authorization", "Referer"} & set(headers)


def test_proxies_of_the_environment_are_not_asked(
    canary: Canary, other: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{other.host}")
    assert Errand(Hosts([canary.host])).fetch(f"http://{canary.host}/") == b"a picture"
    assert other.connections == 0


@pytest.mark.parametrize(
    "written",
    [
        "http://localhost:{port}/",  # a name that leads to a private address
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::1]:{port}/",
        "http://images.invalid\\@127.0.0.1:{port}/",
        "http://images.invalid@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@images.invalid/",
        "http://127.0.0.1:{port}#@images.invalid/",
        "http://images.invalid/",
        "http://127.0.0.1:{port}/",
        "https://127.0.0.1:{port}/",
        "HTTP://127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "file:///etc/hostname",
        "file://127.0.0.1:{port}/etc/hostname",
        "gopher://127.0.0.1:{port}/",
        "ftp://127.0.0.1:{port}/",
        "http://127.0.0.1:{port}/\r\nX: y",
        "http://\u2460\u2461\u2466.0.0.1:{port}/",
        "http://127.0.0.1:99999999/",
        "http://[/",
        "",
    ],
)
def test_no_way_of_writing_an_address_reaches_what_is_not_allowed(canary: Canary, written: str) -> None:
    hosts = Hosts(["images.invalid", f"localhost:{canary.server_port}", "localhost"])
    refused(Errand(hosts), written.replace("{port}", str(canary.server_port)))
    refused(Errand(Hosts()), written.replace("{port}", str(canary.server_port)))
    assert canary.connections == 0


@pytest.mark.parametrize(
    "to",
    ["http://{other}/", "http://localhost:{port}/", "http://2130706433:{port}/", "file:///etc/hostname", "//{other}/"],
)
def test_a_redirect_is_an_address_like_any(canary: Canary, other: Canary, to: str) -> None:
    location = to.format(other=other.host, port=other.server_port)
    canary.answers["/"] = plain(b"", 302, Location=location)
    assert "not fetched from" in refused(Errand(Hosts([canary.host])), f"http://{canary.host}/")
    assert other.connections == 0


def test_a_few_redirects_are_followed(canary: Canary) -> None:
    for number in range(5):
        canary.answers[f"/{number}"] = plain(b"", 307, Location=f"/{number + 1}")
    errand = Errand(Hosts([canary.host]))
    assert errand.fetch(f"http://{canary.host}/2") == b"a picture"
    assert "redirects" in refused(errand, f"http://{canary.host}/0")


def test_time_is_limited_over_all(canary: Canary) -> None:
    canary.answers["/"] = by_drops
    errand = Errand(Hosts([canary.host]), seconds=0.5)
    assert "did not arrive" in refused(errand, f"http://{canary.host}/")
    came = canary.connections
    assert "did not arrive" in refused(errand, f"http://{canary.host}/"), "the next picture has no new time"
    assert canary.connections == came


def test_bytes_are_limited_as_stated_and_as_they_come(canary: Canary) -> None:
    canary.answers["/stated"] = plain(b"", Content_Length="1000000")
    canary.answers["/coming"] = lambda to: (to.send_response(200), to.end_headers(), to.wfile.write(bytes(9000)))[0]
    errand = Errand(Hosts([canary.host]), most=5000)
    for path in ("/stated", "/coming"):
        assert "too many bytes" in refused(errand, f"http://{canary.host}{path}")
    canary.answers["/"] = plain(bytes(3000))
    assert len(errand.fetch(f"http://{canary.host}/")) == 3000
    assert "too many bytes" in refused(errand, f"http://{canary.host}/"), "what came before counts"


def test_packed_bodies_and_errors_are_refused(canary: Canary) -> None:
    canary.answers["/packed"] = plain(gzip.compress(bytes(10**6)), Content_Encoding="gzip")
    canary.answers["/gone"] = plain(b"", 404)
    errand = Errand(Hosts([canary.host]))
    assert "packed" in refused(errand, f"http://{canary.host}/packed")
    assert "404" in refused(errand, f"http://{canary.host}/gone")


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("2606:2800:220:1::1", True), ("127.0.0.1", False), ("10.1.2.3", False),
        ("172.16.0.1", False), ("192.168.1.1", False), ("169.254.1.1", False), ("100.64.0.1", False),
        ("0.0.0.0", False), ("224.0.0.1", False), ("240.0.0.1", False), ("255.255.255.255", False), ("::1", False),
        ("::", False), ("fe80::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("ff02::1", False),
        ("::ffff:127.0.0.1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False), ("::ffff:93.184.216.34", True),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize("entry", ["", "http://images.invalid", "images.invalid/path", "a@b", "host:port", "h\u00f6st"])
def test_an_entry_that_is_no_host_is_told(entry: str) -> None:
    with pytest.raises(VLChatError, match="--allow-images-from"):
        Hosts([entry])
