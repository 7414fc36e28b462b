"""Other ways to a model of the same size, and the bounds: centralised and local training.

Bytes are of the file that would ship, with the backbone at the smallest precision that candidates
have and the cluster's devices execute, and accuracies are of a backbone that is rounded like that.
"""

import bisect
import copy
import importlib.util
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acme_fleet.config.devices import Cluster, Precision, common
from acme_fleet.cost.size import parameter_count, shapes_of, stored_model, stored_size
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, join
from acme_fleet.inspection.plan import largest_header
from acme_fleet.messages.header_plan import Genotype, HeaderPlan
from acme_fleet.models.backbone.elastic import Architecture, architecture, build, extract
from acme_fleet.models.backbone.precision import rounded, use_precision
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier, CustomizedModel, feature_samples, feature_sizes
from acme_fleet.models.header.by_hand import HAND_MADE, hand_made
from acme_fleet.models.header.module import LinearHeader, build_header, initial_tensors
from acme_fleet.models.probe import refit
from acme_fleet.runs.summary import ClusterSummary
from acme_fleet.seeding import seeded
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.augmentation import augmentation
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.loop import Optimization, fit, steps_of
from acme_fleet.training.precision import mixed_precision
from acme_research.frame.bench import Bench
from acme_research.rivals.shapes import (
    Plain,
    adapted_accuracies,
    features_of_splits,
    limit_of,
    personal_accuracies,
    personal_accuracy,
)

Backbone = TypeVar("Backbone", bound=nn.Module)
_FRAME = 512  # scalars' worth of bytes for the names of a header's tensors


def executed(cluster: Cluster, bench: Bench) -> tuple[Precision, ...]:
    """The candidates' precisions that all devices of a cluster execute, the smallest first."""
    return common([bench.fleet.backbone.precisions, cluster.precisions])


def shipped_bytes(backbone: nn.Module, header: nn.Module, cluster: Cluster, bench: Bench) -> int:
    """Bytes of the file as it would ship to a cluster's devices."""
    shapes = shapes_of(backbone), shapes_of(header)
    return stored_size(stored_model(*shapes, executed(cluster, bench)[0]))


def quantised(backbone: Backbone, cluster: Cluster, bench: Bench) -> Backbone:
    """A copy of a backbone as it would ship to a cluster's devices, frozen."""
    precision = executed(cluster, bench)[0]
    if precision == "float32":
        return backbone
    small = copy.deepcopy(backbone)
    small.load_state_dict(rounded(small.state_dict(), precision))
    use_precision(small, precision)
    return small.requires_grad_(False).eval()


# --- the same ViT, made smaller in other ways -------------------------------------------------


def dynabert(cluster: Cluster, bench: Bench) -> dict[str, Any]:
    """DynaBERT's recipe: the most accurate width and depth that fits, a linear classifier.

    It is recovered as a chosen backbone is, and its classifier is a regression on its own features
    where that is better than the whole reference's.
    """
    table = bench.candidates()
    able, limit = executed(cluster, bench), limit_of(cluster)
    columns = zip(table["size_bytes"], table["precision"], strict=True)
    fitting = [i for i, (size, kind) in enumerate(columns) if size <= limit and kind in able]
    best = min(fitting, key=lambda i: table["loss"][i])
    variant = Variant(*(table[part][best] for part in ("width", "depth", "hidden", "precision")))
    small = bench.recovered(variant)
    shapes = shapes_of(small.backbone), shapes_of(small.head)
    parts = (feature_samples(small.backbone, s) for s in _known(bench))
    small.head.load_state_dict(_own_head(small.head, *parts))
    return {
        "accuracy": personal_accuracies(Plain(small).eval(), cluster, bench, "dynabert"),
        "size_bytes": stored_size(stored_model(*shapes, variant.precision)),
    }


def _known(bench: Bench) -> tuple[Samples, Samples]:
    public = bench.world.public
    return public.train, public.validation


def _own_head(head: nn.Linear, train: Samples, validation: Samples) -> dict[str, Tensor]:
    """A linear classifier's tensors, or a regression's where validation finds it better."""
    state = {name: value.detach() for name, value in head.state_dict().items()}
    if CLASSIFICATION.probe is None:
        return state
    fitted = refit(CLASSIFICATION.probe, state, train, validation)
    given, own = (evaluate(CLASSIFICATION, LinearHeader(h), validation) for h in (state, fitted))
    return fitted if own.better_than(given) else state


def torch_pruned(cluster: Cluster, bench: Bench) -> dict[str, Any] | None:
    """Torch-Pruning's Taylor pruning of the whole elastic model, distilled from its logits.

    None where Torch-Pruning is not installed, or where nothing fits. It takes as many epochs as
    both distillation steps and the recovery, at the learning rate of the steps.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        return None
    from acme_research.rivals.taylor_pruning import taylor_pruned

    whole = Variant.whole(bench.elastic.sizes.layers)
    teacher = Classifier(bench.backbone(whole), bench.elastic.classifier.head)
    teacher.eval()
    public = bench.world.public
    grid = dimensions(teacher.backbone.config).neurons // 8

    def pruned(kept: int) -> Classifier:
        samples = public.train[: bench.fleet.backbone.importance_samples]
        trainable = Classifier(teacher.backbone, teacher.head).requires_grad_(True)
        return taylor_pruned(trainable, samples, 1 - kept / grid, "all dimensions")

    def bytes_of(model: Classifier) -> int:
        return shipped_bytes(model.backbone, model.head, cluster, bench)

    # The widest that fits: sizes rise with the width, and 0 is none.
    widths, limit = range(1, grid), limit_of(cluster)
    low = bisect.bisect_right(widths, limit, key=lambda kept: bytes_of(pruned(kept)))
    if low == 0:
        return None
    student = pruned(low).requires_grad_(True)
    with bench.accelerated(student, teacher):
        _recover(student, teacher.requires_grad_(False), bench, cluster.name)
    shipped = Classifier(quantised(student.backbone, cluster, bench), student.head)
    return {
        "accuracy": personal_accuracies(Plain(shipped), cluster, bench, "torch pruning"),
        "size_bytes": bytes_of(student),
    }


def _recover(student: Classifier, teacher: Classifier, bench: Bench, purpose: str) -> None:
    distillation, train = bench.fleet.backbone.distillation, bench.world.public.train
    training = distillation.training.model_copy(update={"epochs": distillation.epochs_in_all})
    optimization = Optimization(student.parameters(), training, steps_of(train, training))
    reference = bench.fleet.reference
    augment = augmentation(reference.crop_padding, flip=reference.flip)
    draw = bench.draw("recovery", purpose)
    student.train()
    for _ in range(training.epochs):
        for batch in train.batches(training.batch_size, draw):
            inputs = (augment(batch, draw) if augment else batch).inputs
            with mixed_precision(student.head.weight.device):
                with torch.no_grad():
                    target = teacher(**inputs)
                loss = F.mse_loss(student(**inputs), target)
            loss.backward()
            optimization.step()
    student.eval()


def early_exit(cluster: Cluster, bench: Bench) -> dict[str, Any] | None:
    """The reference's first layers, as many as fit, with the best of four hand-made headers.

    A header is as large as ACME's largest would be, less where the limit leaves less, and is
    trained on the public data; the best is chosen by the public validation data. None where not
    even one layer fits.
    """
    reference = bench.reference
    sizes = dimensions(reference.backbone.config)
    room = parameter_count(largest_header(bench.fleet.header, reference).shapes())
    for depth in range(sizes.layers, 0, -1):
        whole = architecture(sizes, 1.0, sizes.layers)
        first = Architecture(tuple(range(depth)), whole.heads[:depth], whole.neurons[:depth])
        backbone = extract(reference.backbone, first).requires_grad_(False)
        kept = shipped_bytes(backbone, nn.Identity(), cluster, bench)
        spare = (limit_of(cluster) - kept) // 4
        if spare > 2 * reference.head.in_features * len(bench.world.classes):
            break
    else:
        return None
    backbone = quantised(backbone, cluster, bench)
    train, validation = (feature_samples(backbone, s) for s in _known(bench))
    maps = tuple(train.inputs["last"].shape[1:])
    state = _own_head(reference.head, train, validation)
    found = []
    for kind in ("linear", *HAND_MADE):
        draw = bench.draw("early exit", cluster.name, kind)
        if kind == "linear":
            header = LinearHeader(state)
        else:
            header = hand_made(kind, state, maps, min(room, spare - _FRAME), draw)
        if header is not None:
            tuning = bench.fleet.search.fine_tuning
            fit(CLASSIFICATION, header, train, tuning, draw, validation=validation)
            found.append((evaluate(CLASSIFICATION, header, validation), kind, header))
    _, kind, header = max(found, key=lambda entry: (entry[0].score, -entry[0].loss))
    return {
        "accuracy": adapted_accuracies(
            lambda samples: feature_samples(backbone, samples), header, cluster, bench, "early exit"
        ),
        "size_bytes": shipped_bytes(backbone, header, cluster, bench),
        "layers": depth,
        "header": kind,
    }


# --- bounds -----------------------------------------------------------------------------------


def pooled(bench: Bench) -> tuple[Samples, Samples]:
    """The data of a centralised system: everybody's training data, everybody's validation data."""
    world = bench.world
    own = world.private.values()
    train = [world.public.train, *world.shared.values(), *(splits.train for splits in own)]
    return join(train), join([world.public.validation, *(splits.validation for splits in own)])


def model_of(cluster: ClusterSummary, bench: Bench, *, pretrained: bool) -> CustomizedModel:
    """The cluster's architecture with an untrained header, on an untrained backbone or its own."""
    if pretrained:
        backbone = bench.recovered(cluster.variant).backbone
    else:
        config = bench.backbone(cluster.variant).config
        with seeded(bench.draw("local only").initial_seed()):
            backbone = build(config, "cpu")
    plan = HeaderPlan(
        genotype=Genotype.model_validate(cluster.genotype),
        classes=len(bench.world.classes),
        **feature_sizes(backbone.config)._asdict(),
    )
    header = build_header(plan, initial_tensors(plan.shapes(), bench.draw("bound", cluster.name)))
    return CustomizedModel(backbone.requires_grad_(True), header.requires_grad_(True))


def centralised(cluster: Cluster, summary: ClusterSummary, bench: Bench) -> dict[str, Any]:
    """All of the cluster's architecture trained on pooled data; then each header on its own too."""
    model = model_of(summary, bench, pretrained=True)
    train, validation = pooled(bench)
    settings = bench.fleet.reference
    epochs = bench.extra.get("centralised_epochs", settings.training.epochs)
    training = settings.training.model_copy(update={"epochs": epochs})
    augment = augmentation(settings.crop_padding, flip=settings.flip)
    draw = bench.draw("centralised", cluster.name)
    with bench.accelerated(model):
        fit(CLASSIFICATION, model, train, training, draw, validation=validation, augment=augment)
    model.requires_grad_(False)
    backbone = quantised(model.backbone, cluster, bench)
    plain, adapted = [], []
    for device in cluster.devices:
        own = bench.world.private[device.name]
        parts = features_of_splits(lambda samples: feature_samples(backbone, samples), own)
        plain.append(evaluate(CLASSIFICATION, model.header, parts.test).score)
        header = copy.deepcopy(model.header).requires_grad_(True)
        draw = bench.draw("centralised", device.name)
        adapted.append(personal_accuracy(header, parts, bench, draw))
    return {
        "pooled": plain,
        "pooled, then adapted": adapted,
        "size_bytes": shipped_bytes(model.backbone, model.header, cluster, bench),
    }


def whole(cluster: Cluster, bench: Bench) -> dict[str, Any]:
    """θ0 itself, too large for any device, with classifiers adapted like a rival's.

    As it was trained on the public data, before it was made elastic.
    """
    model = bench.reference
    shipped = Classifier(quantised(model.backbone, cluster, bench), model.head)
    return {
        "accuracy": personal_accuracies(Plain(shipped), cluster, bench, "reference"),
        "size_bytes": shipped_bytes(model.backbone, model.head, cluster, bench),
    }


def local_only(cluster: Cluster, summary: ClusterSummary, bench: Bench) -> dict[str, Any]:
    """The cluster's architecture, trained from scratch on each device's own data alone."""
    accuracies, size = [], 0
    training = bench.fleet.reference.training.model_copy(
        update={"epochs": bench.extra["local_only_epochs"], "learning_rate": 1e-3}
    )
    for device in cluster.devices:
        own = bench.world.private[device.name]
        model = model_of(summary, bench, pretrained=False)
        draw = bench.draw("local", device.name)
        with bench.accelerated(model):
            fit(CLASSIFICATION, model, own.train, training, draw, validation=own.validation)
        shipped = CustomizedModel(quantised(model.backbone, cluster, bench), model.header)
        accuracies.append(evaluate(CLASSIFICATION, shipped, own.test).score)
        size = shipped_bytes(model.backbone, model.header, cluster, bench)
    return {"accuracy": accuracies, "size_bytes": size}
