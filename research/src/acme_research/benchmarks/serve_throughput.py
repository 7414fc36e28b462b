"""Requests a second of ``acme-runtime serve`` ÷ those of FastAPI with the same model in PyTorch.

The model is that of the benchmark ``deploy``: half of a ViT-S with a header, at int8 in the
artifact, in float32 in PyTorch, as a practitioner would serve it. Eight clients on the same machine
send one PNG after the other on connections that stay open, to both servers in turns. Needs
``pip install 'acme-fleet-research[bench]'``.
"""

import http.client
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from acme_fleet.deploy.export import export, origin_alone
from acme_research.benchmarks.deploy import SHIPPED, SIDE, device_folder, save_reference
from acme_research.frame.loopback import free_ports, wait_for
from acme_research.frame.record import write_ratio

CLIENTS, SECONDS, REPETITIONS = 8, 8.0, 5
RIVAL = """
import io, sys
import acme_fleet, torch, uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from transformers import pipeline

classify = pipeline("image-classification", model=sys.argv[1])
app = FastAPI()

@app.get("/health")
def health():
    return {"status": "ok"}

@app.post("/predict")
async def predict(request: Request):
    return classify(Image.open(io.BytesIO(await request.body())))

uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def healthy(port: int) -> bool:
    """True once the server answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    """A server's process, from its first healthy answer on."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: healthy(port), 60)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def answered(port: int, body: bytes) -> float:
    """Answered requests a second."""
    end = time.perf_counter() + SECONDS

    def client(_: int) -> int:
        connection, count = http.client.HTTPConnection("127.0.0.1", port, timeout=60), 0
        while time.perf_counter() < end:
            connection.request("POST", "/predict", body, {"Content-Type": "image/png"})
            reply = connection.getresponse()
            reply.read()
            if reply.status != 200:
                raise RuntimeError(f"a request got {reply.status}")
            count += 1
        connection.close()
        return count

    start = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(client, range(CLIENTS))) / (time.perf_counter() - start)


def main() -> None:
    torch.manual_seed(0)
    picture = BytesIO()
    values = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    Image.fromarray(values).save(picture, "PNG")
    body = picture.getvalue()
    with TemporaryDirectory() as place:
        folder = Path(place)
        backbone = save_reference(folder / "reference")
        plain = device_folder(backbone, "float32", folder / "plain")
        small = device_folder(backbone, SHIPPED, folder / "small")
        export(origin_alone(small, []), "onnx", folder / "artifact", force=False)
        runner = str(Path(sysconfig.get_path("scripts")) / "acme-runtime")
        ports = dict(zip(("artifact", "FastAPI"), free_ports(2), strict=True))
        artifact = str(folder / "artifact")
        served = [runner, "serve", artifact, "--port", str(ports["artifact"])]
        rival = [sys.executable, "-c", RIVAL, str(plain), str(ports["FastAPI"])]
        rates: dict[str, list[float]] = {name: [] for name in ports}
        with serving(served, ports["artifact"]), serving(rival, ports["FastAPI"]):
            for repetition in range(-1, REPETITIONS):
                for name, port in ports.items():
                    rate = answered(port, body)
                    if repetition >= 0:
                        rates[name].append(rate)
    ours, theirs = (np.array(rates[name]) for name in ports)
    for name, each in rates.items():
        print(f"{name:<12}{np.median(each):8.1f} requests a second")
    write_ratio(
        "serve_throughput",
        ours,
        theirs,
        {
            "model": f"half of a ViT-S, {SIDE} x {SIDE}, {SHIPPED} in the artifact",
            "clients": CLIENTS,
            "cores": os.cpu_count(),
            "requests a second": rates,
        },
    )


if __name__ == "__main__":
    main()
