"""``acme-runtime``: the runner's own command line: predict, serve, pull, rollback."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acme_fleet_runtime import __version__
from acme_fleet_runtime.answers import write_answers, write_lines
from acme_fleet_runtime.errors import AcmeError, FleetError
from acme_fleet_runtime.inputs import Skipped, find_inputs
from acme_fleet_runtime.outside import reason
from acme_fleet_runtime.prompts import HINT, read_prompts, shown
from acme_fleet_runtime.writer import Writer, open_artifact

HOST, PORT, TOKEN = "127.0.0.1", 8080, "ACME_TOKEN"
_DONE, _IN_PART, _WRONG_INPUT, _INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that was typed; returns the exit code, as ``acme``'s."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except AcmeError as error:
        return _wrong(str(error))
    except KeyboardInterrupt:
        _say("interrupted", error=True)
        return _INTERRUPTED
    except OSError as error:
        return _wrong(reason(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("acme-runtime", description="Run an artifact of acme-fleet.")
    parser.add_argument("--version", action="version", version=f"acme-fleet-runtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser(
        "predict", help="classify files, folders and texts, or go on with them"
    )
    serve = commands.add_parser("serve", help="answer HTTP requests")
    for command, run in ((predict, _predict), (serve, _serve)):
        command.add_argument("artifact", type=Path, help="its folder")
        command.add_argument("--threads", type=_count, default=0, help="0: one for each core")
        command.set_defaults(command=run)
    pull = commands.add_parser("pull", help="install the newest release that a publisher has")
    pull.add_argument("--from", dest="source", required=True, help="URL, folder or bundle")
    pull.add_argument("--device", required=True, help="its name")
    pull.add_argument("--to", type=Path, required=True, help="the device's folder of releases")
    pull.add_argument("--trust", help="the publisher's fingerprint or root.json; needed once")
    pull.add_argument("--again", action="store_true", help="also what was rolled back here")
    pull.set_defaults(command=_pull)
    rollback = commands.add_parser("rollback", help="go back to the release before")
    rollback.add_argument("to", type=Path, help="the device's folder of releases")
    rollback.set_defaults(command=_rollback)
    predict.add_argument(
        "files", type=Path, nargs="*", help="files, folders, words of a text; - is standard input"
    )
    predict.add_argument("--text", action="append", default=[], help="a text; may be given again")
    predict.add_argument("--lines", action="store_true", help="a file holds one text a line")
    predict.add_argument("--json", action="store_true", help="a JSON object a line")
    predict.add_argument("--tokens", type=_count, default=40, help="new ones of a language model")
    predict.add_argument("--chat", action="store_true", help="texts are what a user says")
    predict.add_argument("--top", type=_count, default=None, help="the n most probable classes")
    serve.add_argument("--host", default=HOST, help="others than this machine's need a token")
    serve.add_argument("--port", type=_count, default=PORT)
    serve.add_argument("--token", default=None, help=f"or the environment's {TOKEN}")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def _predict(options: Any) -> int:
    if not options.files and not options.text:
        raise FleetError("name files, or give a --text")
    runner, skipped = open_artifact(options.artifact, options.threads), Skipped()
    if isinstance(runner, Writer):
        return _complete(runner, options)
    inputs = find_inputs(
        options.files, options.text, skipped, images=runner.takes_images, lines=options.lines
    )
    write = write_answers if options.json else write_lines
    total, refused = write(runner.classify(inputs), options.top or None)
    if skipped.count:
        _say(skipped.told(images=runner.takes_images), error=True)
    if not total:
        raise FleetError("there is nothing to classify")
    if refused:
        _say(f"error: {refused} of {total} could not be read", error=True)
    return _IN_PART if refused else _DONE


def _complete(writer: Writer, options: Any) -> int:
    for text in read_prompts(options.files, options.text, lines=options.lines):
        written = writer.answer(text, options.tokens, options.chat)
        answer = {"prompt": text, "text": written}
        _say(json.dumps(answer) if options.json else shown(text, written))
    if writer.chats and not (options.chat or options.json):
        _say(HINT, error=True)
    return _DONE


def _serve(options: Any) -> int:
    from acme_fleet_runtime.server import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    token = options.token or os.environ.get(TOKEN) or None
    artifact = open_artifact(options.artifact, options.threads)
    serve(artifact, options.host, options.port, token, _say)
    return _DONE


def _pull(options: Any) -> int:
    from acme_fleet_runtime.delivery.device import pull

    where, device, to = options.source, options.device, options.to
    _say(pull(where, device, to, trust=options.trust, again=options.again).told)
    return _DONE


def _rollback(options: Any) -> int:
    from acme_fleet_runtime.delivery.device import rollback

    _say(rollback(options.to).told)
    return _DONE


def _wrong(told: str) -> int:
    _say(f"error: {told}", error=True)
    return _WRONG_INPUT


def _say(text: str, *, error: bool = False) -> None:
    stream = sys.stderr if error else sys.stdout
    stream.write(text + "\n")
    stream.flush()
