"""A device's answer, damaged between its role and Flower: so it travels over the network."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from acme_fleet.links.wire import decode, encode
from acme_fleet.messages.edge_device import WeightsUpload
from acme_fleet.network.flower.channel import listen
from acme_fleet.network.flower.frames import receive_frame, send_frame
from acme_research.frame.loopback import wait_for

Damage = Callable[[bytes], bytes]


@contextmanager
def damaged(role_socket: Path, damages: Mapping[str, list[Damage]]) -> Iterator[list[str]]:
    """Take the place of a role's socket, and pass its answers on with some of them changed.

    Args:
        role_socket: where a device's role listens; the role itself is left as it is.
        damages: by type of message, what is done to the first answers of that type, in order.

    Yields the types of the messages that were damaged so far.
    """
    wait_for(role_socket.exists, 120)  # a host is up before its role has loaded
    real = role_socket.with_name("real.sock")
    role_socket.rename(real)
    listener, left = listen(role_socket), {kind: list(each) for kind, each in damages.items()}
    done: list[str] = []

    def passed(connection: socket.socket) -> None:
        with connection, socket.socket(socket.AF_UNIX) as role:
            role.connect(str(real))
            send_frame(role, *receive_frame(connection))
            header, answer = receive_frame(role)
            if answer and (kind := _kind(answer)) in left and left[kind]:
                answer = left[kind].pop(0)(answer)
                done.append(kind)
            send_frame(connection, header, answer)

    def serve() -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=passed, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield done
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        real.rename(role_socket)


def _kind(answer: bytes) -> str:
    length = int.from_bytes(answer[:8], "little")
    (kind,) = json.loads(answer[8 : 8 + length])["__metadata__"]
    return kind


def garbage(answer: bytes) -> bytes:
    """As many other bytes."""
    return bytes(251 - n % 251 for n in range(len(answer)))


def withheld(answer: bytes) -> bytes:
    """No answer at all: who asked waits for as long as it cares to."""
    threading.Event().wait()
    return answer


def not_numbers(answer: bytes) -> bytes:
    """An importance set that has become NaN."""
    return _changed(answer, lambda own: torch.full_like(own, torch.nan))


def misshapen(answer: bytes) -> bytes:
    """An importance set with a neuron too many in every layer."""
    return _changed(answer, lambda own: torch.cat([own, own[:1]]))


def _changed(answer: bytes, change: Callable[[Tensor], Tensor]) -> bytes:
    upload = decode(answer, [WeightsUpload])
    assert isinstance(upload, WeightsUpload)
    importance = {layer: change(own) for layer, own in upload.importance.items()}
    return encode(upload.model_copy(update={"importance": importance}))  # it is not checked again
