"""Shows this host's certificate to the server above: mutual TLS for Flower's SuperNode.

Flower 1.41 cannot show one, so its SuperNode dials this process on the loopback interface, with TLS
as it demands, and this one dials the server. It passes bytes on and reads none of them.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from acme_fleet.failures import own_process
from acme_fleet.network.hosts import certificates

_DIAL_S, _PIECE = 15.0, 2**16


def prepare(keys: Path, folder: Path) -> None:
    """Write what :func:`serve` needs: a certificate for 127.0.0.1, the node's key in PEM."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificates.make_loopback(folder)
    certificates.write_client_key(keys, folder)


async def serve(port: int, upstream: str, keys: Path, folder: Path) -> None:
    """Pass connections on until the process is told to stop.

    The host's certificate is read for every connection: one that was replaced is shown at once.

    Args:
        port: on the loopback interface.
        upstream: ``host:port`` of the server above.
        keys: with ``ca.crt`` and ``node.crt``.
        folder: that was prepared.
    """
    name, _, number = upstream.rpartition(":")
    host = name.strip("[]")

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cafile=keys / certificates.CA)
        context.load_cert_chain(keys / certificates.NODE, folder / certificates.NODE_KEY)
        dialled = asyncio.open_connection(host, int(number), ssl=context, server_hostname=host)
        return await asyncio.wait_for(dialled, _DIAL_S)

    async def passed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with _closing(writer):
            try:
                above_reader, above_writer = await connect()
            except (OSError, TimeoutError) as error:
                sys.stderr.write(f"cannot reach {upstream}: {error or 'no answer'}\n")
                return
            with _closing(above_writer):
                ways = (_copy(reader, above_writer), _copy(above_reader, writer))
                tasks = [asyncio.create_task(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()

    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(folder / certificates.SERVER, folder / certificates.SERVER_KEY)
    async with await asyncio.start_server(passed, "127.0.0.1", port, ssl=own) as server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side ends; who reads slowly slows down who writes."""
    with suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()


@contextmanager
def _closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(OSError):
            writer.close()


def main() -> int:
    """The process's own command: PORT UPSTREAM KEYS FOLDER."""
    port, upstream, keys, folder = sys.argv[1:]
    return own_process(lambda: asyncio.run(serve(int(port), upstream, Path(keys), Path(folder))))


if __name__ == "__main__":
    sys.exit(main())
