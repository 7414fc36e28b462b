"""A language model's server: OpenAI's form, streams, clear refusals, bounds."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acme_fleet_runtime.bounds import Limits
from acme_fleet_runtime.cli import main
from acme_fleet_runtime.server import ArtifactServer
from acme_fleet_runtime.writer import Writer, open_artifact
from tiny_artifact import write_speaker

Serve = Callable[..., ArtifactServer]
TOKEN = "a-token-of-sixteen"
LIGHT = {"model": "tiny", "prompt": "light", "temperature": 0}
SAYS = {"model": "tiny", "messages": [{"role": "user", "content": "light"}], "temperature": 0}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speaker")
    write_speaker(folder)
    return folder


@pytest.fixture
def serve(speaker: Path) -> Iterator[Serve]:
    """Starts servers in this process."""
    servers = []

    def start(
        token: str | None = None, limits: Limits | None = None, folder: Path = speaker
    ) -> ArtifactServer:
        writer = open_artifact(folder, threads=1)
        server = ArtifactServer(("127.0.0.1", 0), writer, token, limits or Limits())
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
        server.end()


def _ask(
    server: ArtifactServer, path: str, document: Any = None, **headers: str
) -> tuple[int, Any, str]:
    """Code, content and type of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    try:
        body = None if document is None else json.dumps(document)
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        content, kind = answer.read().decode(), answer.getheader("Content-Type") or ""
    finally:
        connection.close()
    return answer.status, json.loads(content) if kind == "application/json" else content, kind


def _events(content: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in content.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_prompt_is_completed(serve: Serve):
    code, answer, _ = _ask(serve(), "/v1/completions", LIGHT)
    assert code == 200
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("lamp rain sun", "stop")
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert answer["usage"] == usage
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")


def test_a_chat_is_answered_by_the_template(serve: Serve):
    server = serve()
    code, answer, _ = _ask(server, "/v1/chat/completions", SAYS)
    assert code == 200
    message = {"role": "assistant", "content": "light lamp rain sun"}
    assert answer["choices"][0]["message"] == message
    parts = [{"type": "text", "text": "light"}]
    again = {**SAYS, "messages": [{"role": "user", "content": parts}], "max_completion_tokens": 2}
    _, answer, _ = _ask(server, "/v1/chat/completions", again)
    assert answer["choices"][0]["message"]["content"] == "light lamp"
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("stop", ["rain", ["sun", "rain"]])
def test_a_stop_ends_a_text_before_it(serve: Serve, stop: Any):
    server = serve()
    _, answer, _ = _ask(server, "/v1/completions", {**LIGHT, "stop": stop})
    assert answer["choices"][0]["text"] == "lamp "
    _, streamed, _ = _ask(server, "/v1/completions", {**LIGHT, "stop": stop, "stream": True})
    text = "".join(event["choices"][0]["text"] for event in _events(streamed))
    assert text == "lamp "


def test_streams_are_the_same_text_in_pieces(serve: Serve):
    server = serve()
    further = {"stream": True, "stream_options": {"include_usage": True}}
    code, content, kind = _ask(server, "/v1/chat/completions", {**SAYS, **further})
    assert (code, kind) == (200, "text/event-stream")
    *events, last = _events(content)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(deltas) == "light lamp rain sun"
    assert sum(map(bool, deltas)) > 2
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 4
    assert len({event["id"] for event in events}) == 1
    _, metrics, _ = _ask(server, "/metrics")
    assert 'acme_requests_total{path="/v1/chat/completions",code="200"} 1' in metrics


def test_draws_are_those_of_the_seed(serve: Serve):
    server = serve()
    wish = {"model": "tiny", "prompt": "light", "temperature": 2, "max_tokens": 20}
    texts = [
        _ask(server, "/v1/completions", {**wish, "seed": seed})[1]["choices"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_models_are_listed(serve: Serve):
    code, answer, _ = _ask(serve(), "/v1/models")
    assert code == 200
    assert [model["id"] for model in answer["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("path", "change", "code", "words"),
    [
        ("completions", {"model": "gpt"}, 404, "there is no model 'gpt'; this server has 'tiny'"),
        ("completions", {"prompt": None}, 400, "prompt must be one text"),
        ("completions", {"prompt": ["a", "b"]}, 400, "prompt must be one text"),
        ("completions", {"prompt": "\ud800"}, 400, "Unicode text"),
        ("completions", {"prompt": "  "}, 400, "has no token"),
        ("completions", {"max_tokens": 0.5}, 400, "max_tokens must be a whole number from 1"),
        ("completions", {"max_tokens": 64}, 400, "more than the 64 that the model takes"),
        ("completions", {"prompt": "light " * 64}, 400, "the prompt has 64 tokens, the model"),
        ("completions", {"temperature": 3}, 400, "temperature must be 0 to 2"),
        ("completions", {"temperature": "hot"}, 400, "temperature must be 0 to 2"),
        ("completions", {"top_p": 0}, 400, "top_p must be above 0"),
        ("completions", {"seed": -1}, 400, "seed must be a whole number from 0"),
        ("completions", {"stop": ["a"] * 5}, 400, "stop must be at most 4 texts"),
        ("completions", {"stop": ""}, 400, "stop must be at most 4 texts"),
        ("completions", {"stream": 1}, 400, "stream must be true or false"),
        ("completions", {"stream_options": {"x": 1}}, 400, "include_usage alone"),
        ("completions", {"n": 2}, 400, "n is not supported; leave it out, or 1"),
        ("completions", {"tools": []}, 400, "'tools' is not supported here"),
        ("chat/completions", {"messages": []}, 400, "messages must be a list of 1 to"),
        ("chat/completions", {"messages": [{"role": "king"}]}, 400, "messages.0 must be an object"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content must be a text",
        ),
    ],
)
def test_mistakes_are_told(serve: Serve, path: str, change: Any, code: int, words: str):
    sent = {**(SAYS if path.startswith("chat") else LIGHT), **change}
    found, answer, _ = _ask(serve(), f"/v1/{path}", sent)
    assert found == code
    assert words in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_model_without_a_template_completes_alone(serve: Serve, tmp_path: Path):
    write_speaker(tmp_path, template=None)
    server = serve(folder=tmp_path)
    code, answer, _ = _ask(server, "/v1/chat/completions", SAYS)
    assert code == 400
    assert "has no chat template" in answer["error"]["message"]
    write_speaker(tmp_path, template="{{ raise_exception('no kings') }}")
    _, answer, _ = _ask(serve(folder=tmp_path), "/v1/chat/completions", SAYS)
    assert "no kings" in answer["error"]["message"]


def test_what_it_remembers_is_bounded(serve: Serve):
    small = serve(limits=replace(Limits(), waiting_bytes=8 * 10))
    code, answer, _ = _ask(small, "/v1/completions", {**LIGHT, "max_tokens": 10})
    assert code == 400
    assert "together may be 10 tokens here" in answer["error"]["message"]
    with small.waiting.having(80):
        code, answer, _ = _ask(small, "/v1/completions", {**LIGHT, "max_tokens": 9})
    assert (code, answer["error"]["type"]) == (503, "server_error")
    assert _ask(small, "/v1/completions", {**LIGHT, "max_tokens": 9})[0] == 200
    assert small.waiting.taken == 0


def test_a_token_is_asked_for(serve: Serve):
    server = serve(TOKEN)
    code, answer, _ = _ask(server, "/v1/completions", LIGHT)
    assert (code, answer["error"]["type"]) == (401, "invalid_request_error")
    assert _ask(server, "/v1/completions", LIGHT, Authorization=f"Bearer {TOKEN}")[0] == 200
    code, answer, _ = _ask(server, "/predict", {"texts": ["a"]}, Authorization=f"Bearer {TOKEN}")
    assert code == 404
    assert "known: /v1/completions, /v1/chat/completions, /v1/models" in answer["error"]["message"]


def test_many_texts_grow_side_by_side(serve: Serve):
    server = serve()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: _ask(server, "/v1/chat/completions", SAYS), range(64)))
    assert {code for code, _, _ in answers} == {200}
    assert {a["choices"][0]["message"]["content"] for _, a, _ in answers} == {"light lamp rain sun"}


def test_a_peer_that_leaves_frees_its_room(serve: Serve):
    server = serve()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    body = json.dumps({**LIGHT, "stream": True, "temperature": 2, "max_tokens": 60})
    connection.request("POST", "/v1/completions", body)
    answer = connection.getresponse()
    answer.read(1)
    answer.close()
    connection.close()
    assert _ask(server, "/v1/completions", LIGHT)[0] == 200
    for _ in range(1000):
        if not server.waiting.taken:
            break
        threading.Event().wait(0.01)
    assert server.waiting.taken == 0


def test_openais_client_understands_it(serve: Serve):
    openai: Any = pytest.importorskip("openai")
    server = serve(TOKEN)
    place = f"http://127.0.0.1:{server.server_port}/v1"
    with openai.OpenAI(base_url=place, api_key=TOKEN, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        answer = client.chat.completions.create(**SAYS)
        assert answer.choices[0].message.content == "light lamp rain sun"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + 4
        stream = client.chat.completions.create(**SAYS, stream=True)
        parts = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(parts) == "light lamp rain sun"
        text = client.completions.create(**LIGHT, stop=["sun"]).choices[0]
        assert (text.text, text.finish_reason) == ("lamp rain ", "stop")
        pieces = client.completions.create(**LIGHT, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == "lamp rain sun"
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            client.chat.completions.create(**{**SAYS, "model": "gpt"})
        with pytest.raises(openai.BadRequestError, match="temperature must be"):
            client.completions.create(**{**LIGHT, "temperature": 9})


def test_the_small_command_completes(speaker: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["predict", str(speaker), "light", "--tokens", "2"]) == 0
    assert main(["predict", str(speaker), "light", "--chat", "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "light | lamp rain"
    assert json.loads(second) == {"prompt": "light", "text": "light lamp rain sun"}
    writer = open_artifact(speaker)
    assert isinstance(writer, Writer)
    assert writer.token_bytes == 8
