"""A text has one answer, whatever padding is around it and whatever texts are beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.elastic import distillation_loss
from acme_fleet.edge.search_space import SearchSpace
from acme_fleet.edge.shared_weights import SharedWeights
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan, known_operations
from acme_fleet.models.backbone.elastic import architecture, as_elastic
from acme_fleet.models.backbone.supernet import ElasticClassifier
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import Classifier, CustomizedModel, feature_maps, feature_samples
from acme_fleet.models.header.by_hand import HAND_MADE, HandMade, MixerHeader, hand_made
from acme_fleet.models.header.module import (
    Header,
    LinearHeader,
    build_header,
    initial_tensors,
    prune,
)
from acme_fleet.models.padding import (
    at_stride,
    average_pool,
    by_length,
    max_pool,
    mean_over_positions,
    real_first,
    shuffled,
)
from acme_fleet.simulation.stacked import stacked_logits
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.evaluation import evaluate

MakeBackbone = Callable[..., PreTrainedModel]
TEXT_FAMILIES = [name for name, family in FAMILIES.items() if family.grid == "sequence"]
HIDDEN, CLASSES, CHANNELS = 6, 3, 4
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def headers(draw: st.DrawFn, hidden: int = HIDDEN, *, pruned: bool = True) -> Header:
    """Any header for texts, no bias of which is zero; half of them are pruned."""
    blocks = []
    for number in range(draw(st.integers(1, 3))):
        sources, operations = st.integers(0, number + 1), st.sampled_from(known_operations())
        inputs, chosen = draw(st.tuples(sources, sources)), draw(st.tuples(operations, operations))
        blocks.append(Block(inputs=inputs, operations=chosen))
    cells = draw(st.integers(1, 2))
    genotype = Genotype(blocks=tuple(blocks), cells=cells, channels=CHANNELS)
    plan = HeaderPlan(genotype=genotype, hidden=hidden, classes=CLASSES, axes=1)
    tensors = initial_tensors(plan.shapes(), seeded(draw(st.integers(0, 3))))
    header = build_header(plan, {name: tensor + 0.1 for name, tensor in tensors.items()})
    if pruned and draw(st.booleans()):
        some = st.sets(st.integers(0, CHANNELS - 1), min_size=1)
        header = prune(header, {layer: tuple(sorted(draw(some))) for layer in plan.layers})
    return header


@st.composite
def padded_texts(draw: st.DrawFn, most: int = 16) -> tuple[list[Tensor], Tensor, Tensor]:
    """Some texts, and the same in one padded batch: token numbers and mask."""
    side = st.sampled_from(["right", "left"])
    lengths = draw(st.lists(st.integers(1, most // 2), min_size=1, max_size=4))
    width = draw(st.integers(max(lengths), most))
    random = seeded(draw(st.integers(0, 99)))
    texts = [torch.randint(1, 30, (length,), generator=random) for length in lengths]
    # Whatever stands in padded places must not matter.
    ids = torch.randint(30, (len(texts), width), generator=random)
    mask = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if draw(side) == "right" else slice(width - len(text), width)
        ids[row, place], mask[row, place] = text, 1
    return texts, ids, mask


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_any_padding_and_any_company_same_logits(family: str, plain_backbone: MakeBackbone) -> None:
    backbone = as_elastic(plain_backbone(family, layers=2))

    @settings(max_examples=15)
    @given(headers(backbone.config.hidden_size), padded_texts())
    @torch.no_grad()
    def check(header: Header, texts: tuple[list[Tensor], Tensor, Tensor]) -> None:
        alone, ids, mask = texts
        model = CustomizedModel(backbone, header).eval()
        together = model(input_ids=ids, attention_mask=mask)
        for text, logits in zip(alone, together, strict=True):
            torch.testing.assert_close(model(input_ids=text[None])[0], logits, **CLOSE)
            one = {"input_ids": text[None], "attention_mask": torch.ones(1, len(text)).long()}
            torch.testing.assert_close(model(**one)[0], logits, **CLOSE)

    check()


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_references_and_sub_networks_too(family: str, plain_backbone: MakeBackbone) -> None:
    backbone = as_elastic(plain_backbone(family, layers=2))
    classifier = Classifier(backbone, nn.Linear(backbone.config.hidden_size, CLASSES))
    elastic = ElasticClassifier(classifier)
    arch = architecture(elastic.sizes, 0.5, 1)

    @settings(max_examples=10)
    @given(padded_texts())
    @torch.no_grad()
    def check(texts: tuple[list[Tensor], Tensor, Tensor]) -> None:
        alone, ids, mask = texts
        inputs = {"input_ids": ids, "attention_mask": mask}
        whole, small = classifier(**inputs), elastic.run(arch, inputs)
        for row, text in enumerate(alone):
            one = {"input_ids": text[None]}
            torch.testing.assert_close(classifier(**one)[0], whole[row], **CLOSE)
            run = elastic.run(arch, one)
            torch.testing.assert_close(run.logits[0], small.logits[row], **CLOSE)
            padded = small.activations.final[row, : len(text)]
            torch.testing.assert_close(run.activations.final[0], padded, **CLOSE)

    check()


# --- headers on features ----------------------------------------------------------------------


def features(length: int, width: int, texts: int = 2, hidden: int = HIDDEN) -> dict[str, Tensor]:
    """Features of texts of one length, padded to a width."""
    random = seeded(length)
    maps = torch.randn(2, texts, hidden, length, generator=random)
    last, penultimate = F.pad(maps, (0, width - length))
    mask = (torch.arange(width) < length).expand(texts, 1, width)
    pooled = torch.randn(texts, hidden, generator=random)
    return {"last": last, "penultimate": penultimate, "pooled": pooled, "mask": mask}


def gradients(header: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits, and a loss's gradients of all parameters."""
    header.requires_grad_(True)
    logits = header(**inputs)
    loss = F.cross_entropy(logits, torch.arange(len(logits)) % CLASSES)
    found = torch.autograd.grad(loss, list(header.parameters()), materialize_grads=True)
    return logits.detach(), list(found)


def same_with_and_without(header: nn.Module, length: int, padding: int) -> None:
    bare = features(length, length)
    del bare["mask"]
    expected, expected_gradients = gradients(header, bare)
    logits, found = gradients(header, features(length, length + padding))
    torch.testing.assert_close(logits, expected, **CLOSE)
    torch.testing.assert_close(found, expected_gradients, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(headers(), st.integers(1, 9), st.integers(0, 20))
def test_a_header_answers_and_learns_without_padding(
    header: Header, length: int, padding: int
) -> None:
    same_with_and_without(header, length, padding)


@pytest.mark.parametrize("kind", HAND_MADE)
@pytest.mark.parametrize(("length", "padding"), [(1, 0), (1, 8), (4, 5), (9, 0)])
def test_hand_made_headers_too(kind: HandMade, length: int, padding: int) -> None:
    classifier = {"weight": torch.randn(CLASSES, HIDDEN), "bias": torch.randn(CLASSES)}
    header = hand_made(kind, classifier, (HIDDEN, 9), 4_000, seeded())
    assert header is not None
    for parameter in header.parameters():
        parameter.data += 0.1  # a bias shows where it leaks to
    same_with_and_without(header, length, padding)
    same_with_and_without(LinearHeader(classifier), length, padding)


def test_a_mixer_refuses_more_positions_than_it_has_weights_for() -> None:
    header = MixerHeader(HIDDEN, HIDDEN, CLASSES, width=4, tokens=5)
    with pytest.raises(ValueError, match="6 positions; this header mixes 5"):
        header(**features(3, 6))


@settings(max_examples=20)
@given(headers(pruned=False), st.integers(1, 9), st.integers(0, 9))
def test_many_headers_at_once_are_each_one_alone(header: Header, length: int, padding: int) -> None:
    plan, inputs = header.plan, features(length, length + padding, texts=3)
    other = build_header(plan, {n: 0.5 * t for n, t in header.state_dict().items()})
    both = {n: torch.stack([t, 0.5 * t]) for n, t in header.state_dict().items()}
    mine, theirs = inputs, features(length + padding, length + padding, texts=3)
    stacked = {n: torch.stack([mine[n], theirs[n]], dim=1) for n in mine}
    logits = stacked_logits(plan, both, stacked).transpose(1, 2)
    torch.testing.assert_close(logits[0], header(**mine), **CLOSE)
    torch.testing.assert_close(logits[1], other(**theirs), **CLOSE)


def test_the_search_for_headers_sees_real_tokens_alone() -> None:
    space = SearchSpace(
        blocks=2, cells=1, channels=CHANNELS, hidden=HIDDEN, classes=CLASSES, axes=1
    )
    classifier = {"weight": torch.zeros(CLASSES, HIDDEN), "bias": torch.zeros(CLASSES)}
    shared = SharedWeights(space, classifier, seeded())
    for tensor in shared.tensors.values():
        tensor.data += 0.1
    for choice in range(7):
        child = shared.child(space.plan([0, 1, choice, 3, 2, 0, 6 - choice, choice]))
        torch.testing.assert_close(child(**features(5, 11)), child(**features(5, 5)), **CLOSE)


# --- texts with few tokens, or none -----------------------------------------------------------


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_text_without_tokens_is_answered_by_the_bias(
    family: str, plain_backbone: MakeBackbone
) -> None:
    backbone = as_elastic(plain_backbone(family, layers=2)).requires_grad_(True)

    @settings(max_examples=10)
    @given(headers(backbone.config.hidden_size), st.integers(1, 9))
    def check(header: Header, width: int) -> None:
        model = CustomizedModel(backbone, header).requires_grad_(True)
        ids = torch.randint(1, 30, (2, width), generator=seeded(width))
        mask = torch.zeros(2, width, dtype=torch.int64)
        mask[1] = 1
        logits = model(input_ids=ids, attention_mask=mask)
        bias = header.state_dict()["classifier.pooled.bias"]
        torch.testing.assert_close(logits[0], bias, rtol=0, atol=0)
        assert logits.isfinite().all()
        logits.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), name
        model.zero_grad()

    check()


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_text_of_one_token(family: str, plain_backbone: MakeBackbone) -> None:
    """BERT's is [CLS] alone: the pooled token then decides."""
    backbone = as_elastic(plain_backbone(family, layers=2))
    maps = feature_maps(backbone, {"input_ids": torch.tensor([[2]])})
    real = maps.get("mask", torch.ones(1, 1, 1, dtype=torch.bool))
    assert maps["last"].shape[2] == 1
    assert bool(real.any()) == (FAMILIES[family].prefix_tokens == 0)


# --- the parts --------------------------------------------------------------------------------


def test_real_tokens_come_first_in_their_order() -> None:
    ids = torch.tensor([[9, 9, 4, 5], [4, 5, 9, 9], [4, 9, 5, 9], [9, 9, 9, 9]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]])
    types = ids + 1
    moved, real = real_first({"input_ids": ids, "token_type_ids": types, "attention_mask": mask})
    assert moved["input_ids"][:3, :2].tolist() == [[4, 5]] * 3
    assert moved["token_type_ids"].equal(moved["input_ids"] + 1)
    assert real is not None
    assert real.tolist() == [[True, True, False, False]] * 3 + [[False] * 4]
    assert moved["attention_mask"].equal(real.long())
    same, none = real_first({"input_ids": ids})
    assert none is None
    assert same["input_ids"].equal(ids)


def test_masks_of_another_shape_are_refused(plain_backbone: MakeBackbone) -> None:
    ids = torch.ones(2, 4, dtype=torch.int64)
    for family in ("bert", "llama"):
        backbone = as_elastic(plain_backbone(family, layers=1))
        for shape in ((2, 3), (1, 4), (2, 1, 4, 4)):
            with pytest.raises(ValueError, match=r"attention_mask has shape .* have \(2, 4\)"):
                feature_maps(backbone, {"input_ids": ids, "attention_mask": torch.ones(shape)})


@pytest.mark.parametrize("length", range(1, 9))
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_strided_text_has_as_many_positions_as_without_padding(length: int, stride: int) -> None:
    mask = (torch.arange(19) < length).view(1, 1, -1)
    convolution = nn.Conv1d(1, 1, 3, stride=stride, padding=1)
    smaller = at_stride(mask, stride)
    assert smaller is not None
    assert smaller.shape == convolution(torch.zeros(1, 1, 19)).shape
    assert int(smaller.sum()) == convolution(torch.zeros(1, 1, length)).shape[2]


def test_pools_and_means_by_hand() -> None:
    x = torch.tensor([[[-4.0, -2.0, -6.0, 0.0, 0.0]], [[-8.0, 0.0, 0.0, 0.0, 0.0]]])
    mask = torch.tensor([[[True, True, True, False, False]], [[True] + [False] * 4]])
    average = torch.tensor([[[-3.0, -4.0, -4.0, 0, 0]], [[-8.0, 0, 0, 0, 0]]])
    largest = torch.tensor([[[-2.0, -2.0, -2.0, 0, 0]], [[-8.0, 0, 0, 0, 0]]])
    torch.testing.assert_close(average_pool(x, mask, 1), average)
    torch.testing.assert_close(max_pool(x, mask, 1), largest)
    torch.testing.assert_close(mean_over_positions(x, mask, 1), torch.tensor([[-4.0], [-8.0]]))
    nothing = torch.zeros_like(mask)
    assert not mean_over_positions(torch.zeros_like(x), nothing, 1).any()


def _texts(lengths: list[int], tokens: int) -> Samples:
    """Texts of these lengths, each with a label of its own."""
    ids = torch.randint(1, 30, (len(lengths), tokens), generator=seeded())
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    count = len(lengths)
    inputs = {"input_ids": ids, "attention_mask": mask}
    return Samples(inputs, torch.arange(count), torch.ones(count).long())


def test_texts_of_like_length_share_a_batch_that_is_cut_to_its_longest() -> None:
    samples = _texts([3, 9, 1, 4, 9, 2], tokens=12)
    batches, back = by_length(samples, 2)
    together = list(batches)
    assert [batch.inputs["input_ids"].shape[1] for batch in together] == [2, 4, 9]
    assert back is not None
    labels = torch.cat([batch.labels for batch in together])
    assert torch.equal(labels[back], samples.labels)


@given(st.lists(st.integers(1, 19), min_size=1, max_size=90), st.integers(1, 5))
def test_shuffled_texts_come_once_each_and_no_token_is_lost(
    lengths: list[int], batch_size: int
) -> None:
    samples = _texts(lengths, tokens=20)
    batches = list(shuffled(samples, batch_size, seeded()))
    assert len(batches) == -(-len(samples) // batch_size)
    together = torch.cat([batch.labels for batch in batches])
    assert sorted(together.tolist()) == list(range(len(samples)))
    for batch in batches:
        expected = [lengths[label] for label in batch.labels]
        assert batch.inputs["attention_mask"].sum(dim=1).tolist() == expected
        assert batch.inputs["input_ids"].shape[1] == max(expected)


def test_shuffled_texts_have_little_padding_and_another_order_each_time() -> None:
    lengths = torch.randint(1, 25, (640,), generator=seeded()).tolist()
    samples, generator = _texts(lengths, tokens=32), seeded()
    orders = []
    for _ in range(2):
        batches = list(shuffled(samples, 16, generator))
        padding = sum(int((batch.inputs["attention_mask"] == 0).sum()) for batch in batches)
        assert padding < 0.1 * sum(lengths)
        orders.append([batch.labels.tolist() for batch in batches])
    assert orders[0] != orders[1]
    longest = [max(lengths[label] for label in batch) for batch in orders[0]]
    assert longest != sorted(longest)


def test_images_keep_their_order() -> None:
    labels = torch.arange(5)
    batches, back = by_length(Samples({"pixel_values": torch.randn(5, 1)}, labels, labels), 2)
    assert back is None
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_features_are_those_of_each_text_alone(family: str, plain_backbone: MakeBackbone) -> None:
    """In the samples' order, and as long as the inputs however short a batch's texts are."""
    backbone = as_elastic(plain_backbone(family, layers=2))
    samples = _texts([2, 5, 1, 3, 4], tokens=8)
    kept = feature_samples(backbone, samples, batch_size=2)
    assert torch.equal(kept.labels, samples.labels)
    with torch.no_grad():
        for number in range(len(samples)):
            alone = feature_maps(backbone, samples[number : number + 1].inputs)
            assert kept.inputs.keys() == alone.keys()
            for name, values in alone.items():
                torch.testing.assert_close(kept.inputs[name][number], values[0], **CLOSE)


def test_an_evaluation_is_that_of_the_texts_in_any_batches(plain_backbone: MakeBackbone) -> None:
    model = Classifier(as_elastic(plain_backbone("bert", layers=2)), nn.Linear(16, 5)).eval()
    samples = _texts([2, 5, 1, 3, 4], tokens=8)
    with torch.no_grad():
        logits = model(**samples.inputs)
    result = evaluate(CLASSIFICATION, model, samples, batch_size=2)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, samples.labels)), rel=1e-5)
    assert result.score == int((logits.argmax(dim=1) == samples.labels).sum()) / 5


def test_features_on_disk_carry_the_mask(plain_backbone: MakeBackbone) -> None:
    """Cached features give the model's own answers."""
    backbone = as_elastic(plain_backbone("bert", layers=2))
    plan = HeaderPlan(
        genotype=Genotype(
            blocks=(Block(inputs=(0, 1), operations=("conv3", "downsample")),), cells=1, channels=4
        ),
        hidden=16,
        classes=CLASSES,
        axes=1,
    )
    header = build_header(plan, initial_tensors(plan.shapes(), seeded()))
    ids = torch.randint(1, 30, (5, 9), generator=seeded())
    mask = (torch.arange(9) < torch.tensor([[1], [2], [5], [8], [9]])).long()
    samples = Samples(
        {"input_ids": ids, "attention_mask": mask}, torch.zeros(5).long(), torch.ones(5).long()
    )
    kept = feature_samples(backbone, samples, batch_size=2)
    with torch.no_grad():
        expected = CustomizedModel(backbone, header)(input_ids=ids, attention_mask=mask)
        torch.testing.assert_close(header(**kept.inputs), expected, **CLOSE)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_students_learn_nothing_of_padding(family: str, plain_backbone: MakeBackbone) -> None:
    backbone = as_elastic(plain_backbone(family, layers=2))
    elastic = ElasticClassifier(Classifier(backbone, nn.Linear(backbone.config.hidden_size, 3)))
    small = architecture(elastic.sizes, 0.5, 1)
    whole = architecture(elastic.sizes, 1.0, 2)
    ids = torch.randint(1, 30, (2, 5), generator=seeded())
    mask = torch.ones(2, 5, dtype=torch.int64)

    def loss(padding: int) -> Tensor:
        inputs = {
            "input_ids": F.pad(ids, (0, padding), value=7),
            "attention_mask": F.pad(mask, (0, padding)),
        }
        runs = (elastic.run(arch, inputs) for arch in (small, whole))
        return distillation_loss(CLASSIFICATION, *runs, small.layers, 1.0, 1.0)

    torch.testing.assert_close(loss(6), loss(0), **CLOSE)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
@pytest.mark.parametrize("pooling", ["first", "mean", "last", "first_mean"])
def test_without_a_mask_all_tokens_are_real(
    family: str, pooling: Pooling, plain_backbone: MakeBackbone
) -> None:
    backbone = as_elastic(plain_backbone(family, layers=1))
    backbone.config.pooling = pooling
    ids = torch.randint(2, 29, (3, 5), generator=seeded())
    with torch.no_grad():
        alone = feature_maps(backbone, {"input_ids": ids})
        masked = feature_maps(backbone, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for name, values in alone.items():
        assert torch.allclose(values, masked[name], **CLOSE), name
