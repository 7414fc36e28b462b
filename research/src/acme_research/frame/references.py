"""Real checkpoints and their data sets, for the benchmarks that need both."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.samples import Samples
from acme_fleet.models.probe import pooled_features
from acme_fleet.tasks.probe import fit_probe


def parser_on_references(doc: str | None, runs: str | None = None) -> argparse.ArgumentParser:
    """The options of a benchmark on real checkpoints; ``--runs`` where finished parts are kept.

    ``--data`` holds ``clinc150`` and ``cifar100``, ``--references`` the checkpoints ``minilm-l6``
    and ``dinov2-small``.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--data", type=_resolved, required=True, help="has clinc150, cifar100")
    parser.add_argument("--references", type=_resolved, required=True, help="checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--accelerator", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    if runs:
        parser.add_argument("--runs", type=_resolved, default=_resolved(f"runs/{runs}"))
    return parser


def _resolved(path: str) -> Path:
    return Path(path).resolve()


def data_of(reference: str, folder: Path) -> dict[str, Any]:
    """The data set of a checkpoint: CLINC150 for the text model, else a third of CIFAR-100."""
    if reference == "minilm-l6":
        train, test = (folder / "clinc150" / f"{part}.jsonl" for part in ("train", "test"))
        columns = {"source": "text", "text_column": "text", "label_column": "intent"}
        return {**columns, "max_tokens": 24, "train": train, "test": test}
    test, train, *_ = sorted((folder / "cifar100").glob("*.parquet"))
    columns = {"source": "parquet", "image_column": "img", "label_column": "fine_label"}
    return {**columns, "image_size": 56, "train": train, "test": test}


def probed(
    backbone: PreTrainedModel, way: Pooling, parts: Sequence[Samples], classes: int
) -> float:
    """Accuracy in percent of a logistic regression on a backbone's features, pooled in one way.

    ``parts`` are training, validation and test samples.
    """
    read = [(pooled_features(backbone, part, [way])[way], part.labels.numpy()) for part in parts]
    train, validation, test = read
    return 100 * fit_probe(train, validation, classes).accuracy(*test)
