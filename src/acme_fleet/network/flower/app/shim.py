"""On a node: passes each message to the role's process on this host, and its answer back."""

from __future__ import annotations

import socket

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from record import pack, unpack

from acme_fleet.network.flower.frames import Header, receive_frame, send_frame

_LONGER_S = 60.0  # than the role was asked to take

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Ask the role. That it cannot be reached is an answer too."""
    asked, payload = unpack(message.content)
    try:
        header, answer = _ask(str(context.node_config["socket"]), asked, payload)
    except OSError as error:
        header, answer = {"error": f"its process does not answer ({error})", "passing": True}, b""
    # Only who received the question can know its id.
    return Message(pack(header | {"id": asked["id"]}, answer), reply_to=message)


def _ask(path: str, asked: Header, payload: bytes) -> tuple[Header, bytes]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(float(asked["wait"]) + _LONGER_S)
        connection.connect(path)
        send_frame(connection, asked, payload)
        return receive_frame(connection)
