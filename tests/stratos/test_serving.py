"""A student that answers here: the same tokens as when it is marked, its latency, its server."""

from __future__ import annotations

import itertools
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acme_fleet.errors import FleetError
from acme_fleet.stratos.serving import StudentWriter, TorchGenerator, measure_latency
from acme_fleet.stratos.teacher import Writer
from acme_fleet_runtime.bounds import Limits
from acme_fleet_runtime.server import ArtifactServer
from acme_fleet_runtime.steps import most_probable
from acme_fleet_runtime.writer import Wish
from tiny_language import TEMPLATE, tiny_llama

_CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("student"), template=TEMPLATE)


def test_tokens_with_remembered_keys_are_those_of_generate(folder: Path):
    writer = Writer(folder, "student", _CPU)
    generator = TorchGenerator(writer.model)
    for prompt in ([1, 7, 8, 9], [1, 10]):
        wanted = writer.write([prompt], 12)[0]
        found = list(itertools.islice(generator.go_on(prompt, most_probable), len(wanted)))
        assert found == wanted
    config = writer.model.config
    assert generator.token_bytes == 2 * 2 * 3 * 4 * 4
    assert config.num_hidden_layers == 2


class _Slow:
    """Each prompt's first number is the seconds to its first token; others take one second."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, 0

    def go_on(self, prompt: Sequence[int], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        self.asked += 1
        for count in itertools.count():
            self.now += prompt[0] if count == 0 else 1
            yield 5 if count == prompt[1] else 3


def test_latency_by_hand():
    slow = _Slow()
    prompts = [[number, 2] for number in range(1, 21)]
    found = measure_latency(slow, prompts, 5, 10, lambda: slow.now)
    assert slow.asked == 22  # the first two twice
    assert (found.answers, found.tokens) == (20, 60)
    assert (found.first_p50_s, found.first_p95_s) == (10, 19)
    assert (found.p50_s, found.p95_s, found.mean_s) == (12, 21, 12.5)
    assert measure_latency(slow, prompts, None, 4, lambda: slow.now).tokens == 80


def test_the_server_answers_as_the_student_is_marked(folder: Path):
    writer = StudentWriter(folder, "student", "float16", _CPU)
    plain = Writer(folder, "student", _CPU)
    server = ArtifactServer(("127.0.0.1", 0), writer, None, Limits())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        said = {"messages": [{"role": "user", "content": "turn light on"}]}
        told = posted(server, "chat/completions", {**said, "max_tokens": 8, "temperature": 0})
        expected = plain.text(plain.write([plain.tokens("turn light on")], 8)[0])
        assert told["choices"][0]["message"]["content"] == expected
        assert told["usage"]["completion_tokens"] <= 8
        with pytest.raises(urllib.error.HTTPError, match="404"):
            posted(server, "chat/completions", {**said, "model": "another"})
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    wish = Wish(6)
    assert writer.complete(writer.prompt("turn light"), wish) == plain.text(
        plain.write([writer.prompt("turn light")], 6)[0]
    )
    with pytest.raises(FleetError, match="more than the 64 that the model takes"):
        writer.check_room([1] * 60, 5)


def posted(server: ArtifactServer, path: str, content: dict[str, Any]) -> Any:
    host, port = server.server_address[:2]
    body = json.dumps({"model": "student", **content}).encode()
    asked = urllib.request.Request(f"http://{host}:{port}/v1/{path}", body)
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.load(answer)
