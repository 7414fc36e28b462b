"""The server: right answers, clear refusals, many requests at once, bounds on everything."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest

from acme_fleet_runtime.bounds import Limits
from acme_fleet_runtime.errors import ArtifactError, FleetError
from acme_fleet_runtime.runner import Runner
from acme_fleet_runtime.server import ArtifactServer, serve
from tiny_artifact import QUADRANTS, quadrant, write_artifact

JSON = "application/json"
FORMATS = "send PNG, JPEG, WebP, BMP or GIF"
TOKEN = "a-token-of-sixteen"
Answer = tuple[int, Any, dict[str, str]]


class Client:
    """Asks a server in this process."""

    def __init__(self, server: ArtifactServer) -> None:
        self.server = server

    def ask(
        self, method: str, path: str, body: bytes = b"", kind: str | None = None, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if kind is not None:
            sent["Content-Type"] = kind
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        told = {name.lower(): value for name, value in answer.getheaders()}
        json_told = told.get("content-type") == "application/json"
        return answer.status, json.loads(content) if json_told and content else content, told

    def predict(self, document: Any, **headers: str) -> Answer:
        return self.ask(
            "POST", "/predict", json.dumps(document).encode(), "application/json", **headers
        )

    def raw(self, content: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.server.server_port), timeout=30) as one:
            one.sendall(content)
            one.shutdown(socket.SHUT_WR)
            received = b""
            while piece := one.recv(2**16):
                received += piece
            return received


Start = Callable[..., Client]


@pytest.fixture
def start() -> Iterator[Start]:
    """``start(runner, limits, token)``: a client of a server that runs."""
    servers: list[ArtifactServer] = []

    def begin(runner: Runner, limits: Limits | None = None, token: str | None = None) -> Client:
        server = ArtifactServer(("127.0.0.1", 0), runner, token, limits or Limits(idle_s=5))
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return Client(server)

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()
        server.end()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("images")
    write_artifact(folder, "images")
    return Runner.open(folder, threads=1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    folder = tmp_path_factory.mktemp("texts")
    write_artifact(folder, "texts")
    return Runner.open(folder, threads=1)


def png(number: int, **options: Any) -> bytes:
    file = BytesIO()
    quadrant(number, **options).save(file, "PNG")
    return file.getvalue()


def coded(content: bytes) -> str:
    return base64.b64encode(content).decode()


# --- answers ----------------------------------------------------------------------------------


def test_images(start: Start, images: Runner):
    client = start(images)
    for number, mode in enumerate(("L", "RGB", "RGBA", "P")):
        code, told, _ = client.ask("POST", "/predict", png(number, mode=mode), "image/png")
        assert code == 200
        assert told["predictions"][0]["class"] == QUADRANTS[number]
    code, told, _ = client.predict({"images": [coded(png(n)) for n in (3, 0, 2)], "top": 2})
    assert code == 200
    assert [each["class"] for each in told["predictions"]] == [QUADRANTS[n] for n in (3, 0, 2)]
    for each in told["predictions"]:
        assert len(each["probabilities"]) == 2
        assert each["probability"] == max(each["probabilities"].values())


def test_texts(start: Start, texts: Runner):
    client = start(texts)
    code, told, _ = client.predict({"texts": ["lamp", "rain sun", "light light sun"]})
    assert code == 200
    assert [each["class"] for each in told["predictions"]] == ["house", "weather", "house"]
    for each in told["predictions"]:
        assert sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_health_and_metrics(start: Start, images: Runner):
    client = start(images)
    assert client.ask("GET", "/health")[:2] == (200, {"status": "ok"})
    client.ask("POST", "/predict", png(0), "image/png")
    client.ask("GET", "/secret-of-a-stranger")
    code, page, headers = client.ask("GET", "/metrics")
    assert code == 200
    assert headers["content-type"].startswith("text/plain")
    lines = page.decode().splitlines()
    assert 'acme_requests_total{path="/predict",code="200"} 1' in lines
    assert 'acme_requests_total{path="",code="404"} 1' in lines
    assert 'acme_artifact_info{name="tiny",precision="float32",task="classification"} 1' in lines
    assert "acme_batch_samples_count 1" in lines
    assert 'acme_batch_samples_bucket{le="+Inf"} 1' in lines
    assert b"stranger" not in page


def test_one_connection_for_many_requests(start: Start, images: Runner):
    client = start(images)
    connection = http.client.HTTPConnection("127.0.0.1", client.server.server_port)
    for number in (0, 5, 2):  # the second is refused, and the connection stays
        body = png(number) if number < 4 else b"no image"
        connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        assert answer.status == (200 if number < 4 else 422)
        answer.read()
    connection.close()


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "code", "words"),
    [
        ("GET", "/", b"", None, 404, "there is no such path"),
        ("GET", "/predict", b"", None, 405, "/predict takes POST alone"),
        ("POST", "/health", b"", None, 405, "/health takes GET alone"),
        ("BREW", "/health", b"", None, 501, "BREW"),
        ("POST", "/predict", b"x", None, 415, "send application/json"),
        ("POST", "/predict", b"x", "text/plain", 415, "send application/json"),
        ("POST", "/predict", b"{", JSON, 400, "no JSON"),
        ("POST", "/predict", b"\xff", JSON, 400, "no JSON"),
        ("POST", "/predict", b"[" * 100_000, JSON, 400, "no JSON"),
        ("POST", "/predict", b'{"images": [], "images": []}', JSON, 400, "stands twice"),
        ("POST", "/predict", b"[]", JSON, 422, '"images"'),
        ("POST", "/predict", b"{}", JSON, 422, '"images"'),
        ("POST", "/predict", b'{"texts": ["a"]}', JSON, 422, '"images"'),
        ("POST", "/predict", b'{"images": ["aaaa"], "x": 1}', JSON, 422, "nothing beside it"),
        ("POST", "/predict", b'{"images": "aaaa"}', JSON, 422, "must be a list"),
        ("POST", "/predict", b'{"images": [1]}', JSON, 422, "must be a list"),
        ("POST", "/predict", b'{"images": []}', JSON, 422, "0 entries"),
        ("POST", "/predict", b'{"images": ["aaaa"], "top": 0}', JSON, 422, "top must be"),
        ("POST", "/predict", b'{"images": ["aaaa"], "top": true}', JSON, 422, "top must be"),
        ("POST", "/predict", b'{"images": ["***"]}', JSON, 422, "images.0 is no Base64"),
        ("POST", "/predict", b'{"images": ["aaaa"]}', JSON, 422, "images.0 as an image"),
        ("POST", "/predict", b"no image", "image/png", 422, "the body as an image"),
        ("POST", "/predict", b"II*\0" + b"\0" * 99, "image/png", 422, f"as an image: {FORMATS}"),
        ("POST", "/predict", b"II*\0" + b"\0" * 99, "image/tiff", 415, FORMATS),
        ("POST", "/predict", b"", "image/png", 400, "the body is empty"),
        ("POST", "/predict", b"", JSON, 400, "the body is empty"),
        ("POST", "/predict", b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/png", 422, "as an image"),
    ],
)
def test_refusals_are_json(
    start: Start,
    images: Runner,
    method: str,
    path: str,
    body: bytes,
    kind: str | None,
    code: int,
    words: str,
):
    client = start(images)
    found, told, headers = client.ask(method, path, body, kind)
    assert (found, headers["content-type"]) == (code, JSON)
    assert words in told["error"]
    assert client.ask("GET", "/health")[0] == 200


def test_texts_that_cannot_be_meant(start: Start, texts: Runner):
    client = start(texts, replace(Limits(), characters=50, samples=3))
    assert client.predict({"texts": [""]})[0] == 422
    code, told, _ = client.ask("POST", "/predict", b"light", "text/plain")
    assert (code, '{"texts": ' in told["error"]) == (415, True)
    assert "more than 50" in client.predict({"texts": ["a" * 51]})[1]["error"]
    assert "4 entries" in client.predict({"texts": ["light"] * 4})[1]["error"]
    body = b'{"texts": ["\\ud800"]}'
    assert "no Unicode" in client.ask("POST", "/predict", body, JSON)[1]["error"]
    code, told, _ = client.ask("POST", "/predict", png(0), "image/png")
    assert (code, told["error"]) == (422, "the model takes texts, and this is an image")


def test_sizes_are_bounded(start: Start, images: Runner):
    client = start(images, replace(Limits(), body_bytes=2000, pixels=100))
    code, told, _ = client.ask("POST", "/predict", b"x" * 2001, "image/png")
    assert (code, told["error"]) == (413, "the body has 2,001 bytes, at most 2,000 are taken")
    code, told, _ = client.ask("POST", "/predict", png(0, side=16), "image/png")
    assert code == 422
    assert "16 × 16 pixels, more than 100" in told["error"]
    assert client.ask("POST", "/predict", png(0), "image/png")[0] == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"POST /predict HTTP/1.1\r\nHost: localhost\r\n\r\n", b"411"),
        (b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n"
            b"Content-Length: 2\r\n\r\nxx",
            b"400",
        ),
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"1\r\nx\r\n0\r\n\r\n",
            b"411",
        ),
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 99\r\n\r\nshort",
            b"400",
        ),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_what_is_no_request(start: Start, images: Runner, content: bytes, status: bytes):
    client = start(images)
    answer = client.raw(content)
    assert answer.split(b" ", 2)[1] == status
    assert b'{"error": ' in answer
    assert client.ask("GET", "/health")[0] == 200


def test_a_slow_body_is_given_up(start: Start, images: Runner):
    client = start(images, replace(Limits(), idle_s=0.2))
    with socket.create_connection(("127.0.0.1", client.server.server_port)) as one:
        one.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            b"Content-Length: 9\r\n\r\nx"
        )
        assert one.recv(2**16).startswith(b"HTTP/1.1 408 ")


def test_a_model_that_fails_is_500_and_the_server_lives(
    start: Start, images: Runner, monkeypatch: pytest.MonkeyPatch
):
    def fail(_: Any) -> Any:
        raise ArtifactError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(images, "probabilities", fail)
        client = start(images)
        code, told, _ = client.ask("POST", "/predict", png(0), "image/png")
        assert (code, told["error"]) == (500, "broken")
    assert client.ask("GET", "/health")[0] == 200


# --- who may ask ------------------------------------------------------------------------------


def test_token(start: Start, images: Runner):
    client = start(images, token=TOKEN)
    assert client.ask("GET", "/health")[0] == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        code, _, told = client.ask("POST", "/predict", png(0), "image/png", **headers)
        assert (code, told["www-authenticate"]) == (401, "Bearer")
        assert client.ask("GET", "/metrics", **headers)[0] == 401
    right = {"Authorization": f"Bearer {TOKEN}", "Host": "cam.example.org"}
    assert client.ask("POST", "/predict", png(0), "image/png", **right)[0] == 200
    assert client.ask("GET", "/metrics", **right)[0] == 200


@pytest.mark.parametrize(
    ("host", "code"),
    [("localhost:80", 200), ("127.0.0.1", 200), ("[::1]:9", 200), ("evil.example", 403)],
)
def test_without_a_token_a_page_with_another_name_gets_nothing(
    start: Start, images: Runner, host: str, code: int
):
    assert start(images).ask("GET", "/health", Host=host)[0] == code


def test_other_machines_need_a_token(images: Runner):
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(FleetError, match="set a --token of at least 16"):
            serve(images, host, 0, None, lambda _: None)
    with pytest.raises(FleetError, match="without spaces"):
        serve(images, "0.0.0.0", 0, "a token with spaces", lambda _: None)


def test_a_port_that_is_taken(start: Start, images: Runner):
    port = start(images).server.server_port
    with pytest.raises(FleetError, match=f"cannot listen on 127.0.0.1, port {port}: "):
        serve(images, "127.0.0.1", port, None, lambda _: None)


# --- many at once -----------------------------------------------------------------------------


def test_many_at_once_each_get_their_own_answer(
    start: Start, images: Runner, monkeypatch: pytest.MonkeyPatch
):
    sizes: list[int] = []
    run = images.probabilities

    def slow(samples: Any) -> Any:
        sizes.append(len(samples))
        time.sleep(0.02)
        return run(samples)

    monkeypatch.setattr(images, "probabilities", slow)
    client = start(images)
    bodies = [png(number) for number in range(4)]

    def one(number: int) -> bool:
        code, told, _ = client.ask("POST", "/predict", bodies[number % 4], "image/png")
        return code == 200 and told["predictions"][0]["class"] == QUADRANTS[number % 4]

    with ThreadPoolExecutor(48) as pool:
        assert all(pool.map(one, range(144)))
    assert sum(sizes) == 144
    assert 1 < max(sizes) <= 32


def test_what_is_too_much_is_refused_and_nothing_is_lost(
    start: Start, images: Runner, monkeypatch: pytest.MonkeyPatch
):
    """Samples that wait are bounded, also for the requests that have not been decoded yet."""
    run, may_run = images.probabilities, threading.Event()

    def held(samples: Any) -> Any:
        may_run.wait(30)
        return run(samples)

    monkeypatch.setattr(images, "probabilities", held)
    client = start(images, replace(Limits(), waiting=8, samples=8))
    found: Counter[int] = Counter()

    def one(_: int) -> None:
        code, told, headers = client.ask("POST", "/predict", png(0), "image/png")
        assert code == 200 or (headers["retry-after"] == "1" and "ask again" in told["error"])
        found[code] += 1

    with ThreadPoolExecutor(24) as pool:
        asked = [pool.submit(one, number) for number in range(24)]
        while found[503] < 16:
            time.sleep(0.01)
        may_run.set()
        for each in asked:
            each.result()
    assert found == {200: 8, 503: 16}
    assert client.server.waiting.taken == client.server.bodies.taken == 0
    assert client.ask("POST", "/predict", png(0), "image/png")[0] == 200


def test_connections_are_bounded(start: Start, images: Runner):
    client = start(images, replace(Limits(), connections=2))
    place = ("127.0.0.1", client.server.server_port)
    held = [socket.create_connection(place) for _ in range(2)]
    while client.server.connections.taken < 2:
        time.sleep(0.01)
    assert b"503 Service Unavailable" in client.raw(b"")
    for one in held:
        one.close()
    while client.server.connections.taken:
        time.sleep(0.01)
    assert client.ask("GET", "/health")[0] == 200


def test_what_was_begun_is_finished_at_the_end(images: Runner, monkeypatch: pytest.MonkeyPatch):
    run, running = images.probabilities, threading.Event()

    def slow(samples: Any) -> Any:
        running.set()
        time.sleep(0.2)
        return run(samples)

    monkeypatch.setattr(images, "probabilities", slow)
    server = ArtifactServer(("127.0.0.1", 0), images, None, Limits())
    loop = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    loop.start()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(Client(server).ask, "POST", "/predict", png(0), "image/png")
        assert running.wait(10)
        server.shutdown()
        loop.join()
        server.server_close()
        server.end()
        assert asked.result()[0] == 200


@pytest.mark.slow
def test_a_thousand_at_once(start: Start, images: Runner):
    client = start(images)
    body = png(3)
    ready = threading.Barrier(1000)

    def one(_: int) -> int:
        ready.wait(60)
        code, told, _ = client.ask("POST", "/predict", body, "image/png")
        assert told["predictions"][0]["class"] == QUADRANTS[3]
        return code

    with ThreadPoolExecutor(1000) as pool:
        assert Counter(pool.map(one, range(1000))) == {200: 1000}
