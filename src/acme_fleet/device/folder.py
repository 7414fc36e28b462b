"""What a device keeps on its own disk: it can be stopped at any time, and repeats nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from torch import Tensor

from acme_fleet.data.samples import Samples, Splits
from acme_fleet.device.refinement import HeaderState
from acme_fleet.errors import ProtocolError
from acme_fleet.files import replacing
from acme_fleet.links.wire import decode, encode
from acme_fleet.messages import DeviceReport, HeaderAssignment, Message
from acme_fleet.models.features import feature_samples
from acme_fleet.models.io import backbone_from, read_tensors, without_prefix, write_tensors

Kept = TypeVar("Kept", bound=Message)
_SPLITS = ("train", "validation", "test")


class DeviceFolder:
    """A device's folder: the model that ships is in it, its own checkpoints under ``state``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.secret = path / "state" / "secret"

    # --- what was received ---

    def accept(self, assignment: HeaderAssignment) -> None:
        """Keep what was received; all that belonged to another assignment is removed."""
        sent, stored = encode(assignment), self._file("assignment")
        if stored.exists() and stored.read_bytes() == sent:
            return
        for outdated in stored.parent.glob("*.safetensors"):
            outdated.unlink()
        with replacing(stored) as file:
            file.write_bytes(sent)

    def assignment(self) -> HeaderAssignment:
        """What was received.

        Raises:
            ProtocolError: if nothing was.
        """
        path = self._file("assignment")
        if not path.exists():
            raise ProtocolError(f"{self.path.name} has received no model yet")
        return _read(path, HeaderAssignment)

    # --- features of the frozen backbone ---

    def features(self, private: Splits) -> Splits:
        """Features of all private data, computed once for an assignment."""
        path = self._file("features")
        if not path.exists():
            assignment = self.assignment()
            backbone = backbone_from(assignment.config, assignment.backbone)
            tensors = {
                f"{split}.{name}": values
                for split in _SPLITS
                for name, values in feature_samples(
                    backbone, getattr(private, split)
                ).inputs.items()
            }
            write_tensors(path, tensors, {})
        tensors, _ = read_tensors(path)

        def samples(split: str) -> Samples:
            own: Samples = getattr(private, split)
            return Samples(without_prefix(split, tensors), own.labels, own.stored_bytes)

        return Splits(*(samples(split) for split in _SPLITS))

    def forget_features(self) -> None:
        """Give their storage back; they are large, and can be computed again."""
        self._file("features").unlink(missing_ok=True)

    # --- the header, round by round ---

    def begin(self, state: HeaderState) -> None:
        """Keep the state before the first round."""
        state.write(self._file("start"))

    def before(self, number: int) -> HeaderState:
        """The last state before a round; a device may have missed rounds in between."""
        earlier = (self._file(f"pruned-{n}") for n in reversed(range(number)))
        return HeaderState.read(next((p for p in earlier if p.exists()), self._file("start")))

    def has_trained(self, number: int) -> bool:
        """Whether the training of a round is done."""
        return all(self._file(f"{what}-{number}").exists() for what in ("importance", "trained"))

    def keep_trained(self, number: int, state: HeaderState, importance: dict[str, Tensor]) -> None:
        """Keep what the training of a round has made."""
        write_tensors(self._file(f"importance-{number}"), importance, {})
        state.write(self._file(f"trained-{number}"))

    def trained(self, number: int) -> tuple[HeaderState, dict[str, Tensor]]:
        """The state after a round's training, and its neurons' importance.

        Raises:
            RunError: if there was none, or a file is damaged.
        """
        state = HeaderState.read(self._file(f"trained-{number}"))
        importance, _ = read_tensors(self._file(f"importance-{number}"))
        return state, {layer: importance[layer] for layer in state.current.plan.layers}

    def keep_pruned(self, number: int, state: HeaderState) -> None:
        """Keep the state at the end of a round."""
        state.write(self._file(f"pruned-{number}"))

    # --- the end ---

    def report(self) -> DeviceReport | None:
        """The report, if there is one."""
        path = self._file("report")
        if not path.exists():
            return None
        return _read(path, DeviceReport)

    def keep_report(self, report: DeviceReport) -> None:
        """Keep the report: the work for this assignment is over."""
        with replacing(self._file("report")) as file:
            file.write_bytes(encode(report))

    def _file(self, name: str) -> Path:
        return self.path / "state" / f"{name}.safetensors"


def _read(path: Path, kind: type[Kept]) -> Kept:
    message = decode(path.read_bytes(), [kind])
    assert isinstance(message, kind)
    return message
