"""The commands that README and docs show, and who runs those that no test types as they stand."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
        ROOT / "examples" / "README.md",
        *(ROOT / "docs").glob("*.md"),
    )
    if path.name != "settings.md"  # written by the program
)
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
"""Its language and its lines, which are further in within a list."""
_PROGRAMS = {
    *("acme", "acme-runtime", "python", "pip", "make", "jupyter", "sh", "git", "curl"),
    *(
        "torchrun",
        "export",
        "cp",
        "docker",
        "systemctl",
        "journalctl",
        "useradd",
        "chown",
        "install",
    ),
}
_BEFORE = re.compile(r"\$ |(?:[\d*/]+ ){5}")  # a prompt, or a schedule of cron
_BESIDE = re.compile(r"\s*(?:#.*)?$|\{")  # empty, a comment alone, an answer in JSON
_PICTURE = re.compile(r"[│├─]")
_ROW = re.compile(r"^\| `(.+?)`", re.MULTILINE)  # of a table that begins with a command
_SEPARATORS = re.compile(r" (?:&&|>) ")  # whose right side needs a shell of its own


@dataclass(frozen=True)
class Typed:
    """A command.

    Attributes:
        place: page and line.
        line: without its comment, its prompt and the spaces that align it.
        program: its name without a path.
    """

    place: str
    line: str
    program: str

    @property
    def words(self) -> list[str]:
        """Those after the program, up to a redirection."""
        return shlex.split(_SEPARATORS.split(self.line)[0])[1:]


def typed(page: Path) -> list[Typed]:
    """A page's commands in their order.

    Raises:
        ValueError: if a block has commands, and one of a program that is unknown here.
    """
    text, found = page.read_text(), []
    name = page.relative_to(ROOT).as_posix()
    for block in BLOCK.finditer(text):
        if block[1] not in {"", "sh", "bash", "shell", "console"} or _PICTURE.search(block[2]):
            continue
        place = f"{name}:{text.count(chr(10), 0, block.start()) + 2}"
        lines = [x for x in block[2].replace("\\\n", " ").splitlines() if not _BESIDE.match(x)]
        commands = [_typed(place, line) for line in lines]
        if any(commands):
            unknown = [x for x, own in zip(lines, commands, strict=True) if own is None]
            if unknown:
                raise ValueError(f"{place}: of an unknown program: {unknown}")
        found += filter(None, commands)
    rows = _ROW.findall(text) if name == "examples/README.md" else []
    return [*found, *filter(None, (_typed(name, row) for row in rows))]


def _typed(place: str, line: str) -> Typed | None:
    line = " ".join(_BEFORE.sub("", re.split(r"\s+#", line)[0]).split())
    program = Path(line.split(" ")[0]).name
    return Typed(place, line, program) if program in _PROGRAMS else None


_SLOW, _SHORT = "tests/slow/test_examples.py", "tests/integration/test_short_examples.py"
ELSEWHERE = {
    # Of developers.
    "make check": "CI has it",
    "make test": "CI has it",
    "make test-faults": "CI has what of tests/faults is not slow",
    "make docs": "CI has it",
    # Of what is downloaded.
    "git clone … && cd acme-fleet": "the clone is here",
    "make demo": "tests/architecture/test_wheels.py runs the demo in an empty environment",
    "curl -H 'Content-Type: image/png' --data-binary @docs/digit.png "
    "http://127.0.0.1:8080/predict": f"{_SHORT}, with a server",
    "pip install 'acme-fleet-runtime[images]'": "tests/runtime/test_distribution.py installs it",
    "pip install -c constraints.txt 'acme-fleet[ui]'": "a package index",
    # Of a root's.
    "useradd --system acme": "an administrator's",
    "chown -R acme: /etc/acme/keys": "an administrator's",
    "install -d -m 700 -o acme /var/lib/acme": "an administrator's",
    "systemctl daemon-reload && systemctl enable --now acme-north": "an administrator's",
    "journalctl -fu acme-north": "an administrator's",
    "docker build -t acme-fleet:latest .": "tests/hosts/test_hosts.py has the files that it reads",
    "docker compose -f compose.yaml up -d": "tests/hosts/test_hosts.py has the file",
    "docker compose exec acme-cloud acme run /etc/acme/fleet.yaml --engine flower --config "
    "/etc/acme/cloud.yaml --out /var/lib/acme/run": "tests/network/test_two_edges.py",
    # Of minutes and hours.
    "acme pretrain --data PATH --model vit-tiny "
    "--out models/mine": "tests/training/test_pretraining.py",
    ".venv/bin/acme export runs/demo --all": "typed as runs/one's",
    "acme export runs/mine --all": "typed as runs/one's",
    "acme distill probe --out here.yaml": "tests/stratos/test_probe_machine.py, smaller models",
    "torchrun --nproc-per-node 4 --no-python acme run fleet.yaml "
    "--out runs/mine": "tests/integration/test_torchrun.py, two processes",
    "make bench NAME=selection_quality": "its file is in research/results",
    "acme run examples/digits.yaml --out runs/digits": "its file is in research/results",
    "acme distill export runs/sums --out student": "tests/deploy/test_student.py has both formats",
    # Of data sets and checkpoints that are not in the tree, of minutes and hours.
    "python examples/tiny_assistants.py PATH/TO/clinc150": _SLOW,
    "python examples/assistants.py PATH/TO/clinc150 PATH/TO/smollm2-135m": _SLOW,
    "python examples/clinc150.py CLINC150": _SLOW,
    "python examples/cifar20.py CIFAR100": _SLOW,
    "python examples/tiny_assistants.py CLINC150": _SLOW,
    "python examples/assistants.py CLINC150 SMOLLM2": f"{_SLOW}, with --quick",
    "python examples/minilm_importance.py CLINC150": _SLOW,
    "python examples/mahjong_waits.py FOLDER": "tests/stratos/test_injection_mahjong.py",
    # Of programs that a test environment need not have.
    "jupyter lab examples/first_steps.ipynb": f"{_SHORT}, its cells",
    "python examples/two_edges.py": "tests/network/test_two_edges.py",
    "sh examples/photos_to_server.sh": _SHORT,
    "python examples/made.py": _SHORT,
    "python examples/own_family.py": _SHORT,
    "acme run examples/writers.yaml --out runs/writers": _SHORT,
}
"""Commands that no test types as they stand, and who runs the same, or why nobody does here."""
