"""The common part of the search's benchmarks: a backbone and an edge server's contest.

The shapes are those of the CIFAR-20 example: a ViT on 32 × 32 with 4 × 4 patches, 128 channels,
20 classes, 400 samples at the edge. Images are random: times do not depend on their values.
"""

import torch
from transformers import PreTrainedModel

from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.edge.comparison import Contest
from acme_fleet.edge.search import HeaderSearch, split_shared_data
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.tasks.classification import CLASSIFICATION

CLASSES, SAMPLES = 20, 400
FLEET = Fleet.parse(
    {
        "reference": {"model": {"hidden_size": 128, "neurons": 512, "patch_size": 8}},
        "search": {"backbone_learning_rate": 0.0},
        "clusters": [{"name": "edge", "devices": [{"name": "device", "storage": "9 MB"}]}],
    }
)


def make_contest() -> tuple[PreTrainedModel, Contest, torch.Generator]:
    """The backbone at half width and depth 3, frozen, and the contest of its edge server."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(SAMPLES, 3, 32, 32, generator=draw)
    labels = torch.randint(CLASSES, (SAMPLES,), generator=draw)
    samples = Samples({"pixel_values": images}, labels, torch.ones(SAMPLES, dtype=torch.int64))
    public = Splits(samples, samples, samples)
    elastic = ElasticClassifier(untrained_reference(FLEET, public, list(map(str, range(CLASSES)))))
    backbone = elastic.extract(elastic.shape(Variant(0.5, 3))).requires_grad_(False)
    head = elastic.classifier.head
    classifier = {"weight": head.weight.detach(), "bias": head.bias.detach()}
    data = split_shared_data(samples, draw)
    header, search = FLEET.header, FLEET.search
    contest = Contest.of(CLASSIFICATION, backbone, classifier, header, search, data, 2**40)
    return backbone, contest, draw


def make_search(backbone: PreTrainedModel, contest: Contest, draw: torch.Generator) -> HeaderSearch:
    """A search that has not begun."""
    known = contest.classifier, contest.space, contest.fits, contest.data, contest.settings
    return HeaderSearch(CLASSIFICATION, backbone, *known, draw)
