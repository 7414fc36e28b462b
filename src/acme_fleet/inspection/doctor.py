"""The state of this machine and installation for a run: what is there, what is off, the remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from acme_fleet.report.words import bytes_text

State = Literal["fine", "note", "optional", "wrong"]
"""``optional`` is an extra that is not installed; ``wrong`` will stop a run or spoil it."""
_PACKAGE = "acme-fleet"
_FOR = {
    "data": "parquet files, the hub's data sets",
    "export": "acme export, acme serve",
    "mobile": "acme export --format executorch",
    "delivery": "acme publish, acme pull",
    "registry": "acme fleet",
    "nvml": "acme profile --gpu",
    "privacy": "noise and masking",
    "flower": "many hosts; in an environment of its own",
    "gguf": "acme export --format gguf",
    "distill": "acme distill run with learning.on_policy",
    "ui": "acme ui",
    "mahjong": "the example of acme distill inject",
    **dict.fromkeys(("mlflow", "tensorboard", "wandb"), "acme run --track"),
}
_OF_DEVELOPERS = {"dev", "docs", "fuzz"}
_LEAST_MEMORY, _LEAST_DISK = 4e9, 2e9  # bytes


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: see :data:`State`.
        told: what was found.
        remedy: what would change it; none where nothing need be changed.
    """

    name: str
    state: State
    told: str
    remedy: str | None = None


def examine_machine(folder: Path) -> Iterator[Check]:
    """Everything, in the order in which it is shown; some seconds are spent on a measurement.

    Args:
        folder: where runs would be written.
    """
    yield Check("acme-fleet", "fine", f"{version(_PACKAGE)}, Python {platform.python_version()}")
    yield from _packages()
    for look in (_torch, _cores, _vectors, _bfloat16, _gpu):
        yield look()
    yield _memory()
    yield from _folders(folder)
    yield from _extras()


# --- what is installed ------------------------------------------------------------------------


def _packages() -> Iterator[Check]:
    """Requirements of the package that are missing or of another version."""
    for problem in _problems(_PACKAGE, ""):
        yield Check("packages", "wrong", problem, "pip install -c constraints.txt acme-fleet")


def _extras() -> Iterator[Check]:
    for extra in sorted(metadata(_PACKAGE).get_all("Provides-Extra") or ()):
        if extra in _OF_DEVELOPERS:
            continue
        purpose = _FOR.get(extra, "")
        if problems := list(_problems(_PACKAGE, extra)):
            remedy = f"pip install 'acme-fleet[{extra}]'"
            if extra == "flower":
                remedy = f"pip install -c constraints-flower.txt 'acme-fleet[{extra}]'"
            told = f"not installed, optional, for {purpose}: {'; '.join(problems)}"
            yield Check(f"extra {extra}", "optional", told, remedy)
        else:
            yield Check(f"extra {extra}", "fine", purpose)


def _problems(package: str, extra: str) -> Iterator[str]:
    """Requirements of a package, or of one of its extras, that are not met."""
    for text in metadata(package).get_all("Requires-Dist") or ():
        requirement = Requirement(text)
        marker = requirement.marker
        of_extra = marker is not None and "extra" in str(marker)
        if of_extra != bool(extra) or (marker and not marker.evaluate({"extra": extra})):
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            yield f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            yield f"{requirement.name} is {there}, and must be {requirement.specifier}"
        for part in requirement.extras:
            yield from _problems(requirement.name, part)


# --- the processor ----------------------------------------------------------------------------


def _torch() -> Check:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for processors"
    return Check("torch", "fine", f"{torch.__version__}, built {build}")


def usable_cores() -> int:
    """Cores that this process may use: by its affinity, and by a container's share of time."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota, _, period = _line("/sys/fs/cgroup/cpu.max").partition(" ")
    return min(cores, max(1, int(quota) // int(period))) if quota.isdigit() else cores


def _cores() -> Check:
    cores, there = usable_cores(), os.cpu_count() or 1
    told = f"{cores}" if cores == there else f"{cores} of {there}, as far as this process may"
    set_threads = os.environ.get("OMP_NUM_THREADS", "")
    if set_threads.isdigit() and int(set_threads) > cores:
        return Check(
            *("cores", "wrong", f"{told}; OMP_NUM_THREADS is {set_threads}"),
            f"OMP_NUM_THREADS={cores}: more threads than cores wait for each other",
        )
    threads = f"; `threads: {cores}` in a fleet file uses them, the default is 1" * (cores > 1)
    return Check("cores", "fine", told + threads)


def _vectors() -> Check:
    import torch

    amx = " and AMX" if torch.cpu._is_amx_tile_supported() else ", without AMX"
    return Check("vectors", "fine", f"{torch.backends.cpu.get_cpu_capability()}{amx}")


def _bfloat16() -> Check:
    """The processor multiplies in bfloat16 or not, and a training step is faster by it or not."""
    import torch

    from acme_fleet.seeding import generator
    from acme_fleet.training.precision import faster_numbers, has_bfloat16

    if not has_bfloat16(torch.device("cpu")):
        return Check("bfloat16", "fine", "not in this processor; `compute: auto` takes float32")
    layer = torch.nn.TransformerEncoderLayer(384, 6, 1536, dropout=0.0, batch_first=True)
    batch = torch.randn(32, 65, 384, generator=generator(0, "doctor"))
    numbers = faster_numbers(layer, lambda: layer(batch).square().mean())
    pays = "is faster" if numbers == "bfloat16" else "is not faster"
    return Check("bfloat16", "fine", f"in this processor; a training step with it {pays}, measured")


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        return Check("GPU", "fine", f"{', '.join(names)}; `accelerator: cuda` uses the first")
    if torch.version.cuda:
        return Check(
            *("GPU", "note", "none that torch sees, though its build is for CUDA"),
            "look at `nvidia-smi`: a driver may be missing or older than the build",
        )
    if Path("/dev/nvidia0").exists():
        return Check(
            *("GPU", "note", "there is one, and this build of torch has no CUDA"),
            "install the default build of the pinned torch from PyPI",
        )
    return Check("GPU", "fine", "none; everything runs on processors")


# --- memory and disk --------------------------------------------------------------------------


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _available() or total
    limit = _line("/sys/fs/cgroup/memory.max")
    if limit.isdigit() and int(limit) < total:
        used = _line("/sys/fs/cgroup/memory.current")
        total, free = int(limit), min(free, int(limit) - int(used or 0))
    told = f"{bytes_text(free)} free of {bytes_text(total)}"
    if free < _LEAST_MEMORY:
        needed = f"less than {bytes_text(_LEAST_MEMORY)}: the demo runs, larger models may not"
        return Check("memory", "note", f"{told}, {needed}", "end other programs, or use less data")
    return Check("memory", "fine", told)


def _available() -> int | None:
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def _folders(folder: Path) -> Iterator[Check]:
    """Disks of runs, of temporary files and of what is downloaded: free bytes, and rights."""
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    places = {
        "disk of runs": folder,
        "temporary files": Path(tempfile.gettempdir()),
        "downloads": Path(home),
    }
    for name, place in places.items():
        there = next(each for each in (place, *place.parents) if each.is_dir())
        free = shutil.disk_usage(there).free
        told = f"{bytes_text(free)} free at {place}"
        if not os.access(there, os.W_OK):
            yield Check(name, "wrong", f"{there} cannot be written", "take another folder")
        elif free < _LEAST_DISK:
            yield Check(name, "note", told, "make room, or write elsewhere")
        else:
            yield Check(name, "fine", told)


def _line(path: str) -> str:
    return _text(path).strip()


def _text(path: str) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""
