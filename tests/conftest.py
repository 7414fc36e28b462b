"""Small models and data that several tests share."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Shapes and types of the mathematics are checked in every test; before acme_fleet is imported.
_MATHEMATICS = (
    *("cloud.objectives", "cloud.choices", "distillation", "selection"),
    *("edge.controller", "edge.search", "edge.search_space", "edge.shared_weights"),
    *("edge.strategies", "edge.comparison", "edge.similarity", "edge.peers", "personalization"),
    *("device.importance", "device.refinement", "models", "simulation", "baselines"),
    *("privacy.noise", "privacy.masking", "privacy.protection", "cost.energy", "cost.size"),
    *("data.samples", "data.shares", "data.partition", "tasks", "messages.importance_set"),
    "messages.peer_weights",
    *("stratos.predictors", "stratos.calibration", "stratos.plan"),
)
install_import_hook([f"acme_fleet.{name}" for name in _MATHEMATICS], "typechecker.checked")

from torch import Tensor, nn  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    BertConfig,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    DistilBertConfig,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SiglipVisionConfig,
    SmolLM3Config,
    ViTConfig,
    XLMRobertaConfig,
)

from acme_fleet.data.samples import Samples  # noqa: E402
from acme_fleet.models.backbone.elastic import as_elastic  # noqa: E402
from acme_fleet.models.families import FAMILIES  # noqa: E402
from acme_fleet.models.features import Classifier  # noqa: E402
from acme_fleet.training import precision  # noqa: E402

torch.set_num_threads(1)
# A shell's background jobs ignore what some tests send to themselves.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
# Whatever the processor: which numbers are the faster is not for a test to depend on.
precision.has_bfloat16 = lambda device: False
settings.register_profile("quick", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=300)  # `make test-slow`
settings.load_profile("quick")

_IMAGE: dict[str, Any] = {"image_size": 8, "patch_size": 2, "num_channels": 1}
_PLAIN: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 12}
_GROUPED: dict[str, Any] = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 3}
_TEXT: dict[str, Any] = {"vocab_size": 30, "max_position_embeddings": 16}
# Positions begin behind the padding token's number.
_SHIFTED: dict[str, Any] = {"vocab_size": 30, "max_position_embeddings": 18, "pad_token_id": 1}
_SPECIAL: dict[str, Any] = dict.fromkeys(
    ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
)
_DINO: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 4}
_DISTIL: dict[str, Any] = {"dim": 16, "n_heads": 4, "hidden_dim": 12}
# Layers that differ in kind: the first attends to everything, the others to three tokens.
_WINDOW: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}

_KINDS = ("sliding_attention", "full_attention", "sliding_attention")
# Heads that are not a share of the hidden size, as in their released models.
_WIDE: dict[str, Any] = {**_GROUPED, "head_dim": 6, "intermediate_size": 10}

_CONFIGS: dict[str, Callable[[int], Any]] = {
    "vit": lambda n: ViTConfig(num_hidden_layers=n, **_IMAGE, **_PLAIN),
    "deit": lambda n: DeiTConfig(num_hidden_layers=n, **_IMAGE, **_PLAIN),
    "dinov2": lambda n: Dinov2Config(
        num_hidden_layers=n, mlp_ratio=1, use_mask_token=False, **_IMAGE, **_DINO
    ),
    "clip_vision_model": lambda n: CLIPVisionConfig(num_hidden_layers=n, **_IMAGE, **_PLAIN),
    "siglip_vision_model": lambda n: SiglipVisionConfig(num_hidden_layers=n, **_IMAGE, **_PLAIN),
    "roberta": lambda n: RobertaConfig(num_hidden_layers=n, **_SHIFTED, **_PLAIN),
    "xlm-roberta": lambda n: XLMRobertaConfig(num_hidden_layers=n, **_SHIFTED, **_PLAIN),
    "mpnet": lambda n: MPNetConfig(num_hidden_layers=n, **_SHIFTED, **_PLAIN),
    "modernbert": lambda n: ModernBertConfig(
        num_hidden_layers=n,
        layer_types=list(_KINDS)[:n],
        local_attention=4,
        norm_bias=True,
        attention_bias=True,
        mlp_bias=True,
        **_SPECIAL,
        **_TEXT,
        **_PLAIN,
    ),
    "bert": lambda n: BertConfig(num_hidden_layers=n, **_TEXT, **_PLAIN),
    "distilbert": lambda n: DistilBertConfig(n_layers=n, **_TEXT, **_DISTIL),
    "llama": lambda n: LlamaConfig(num_hidden_layers=n, intermediate_size=10, **_TEXT, **_GROUPED),
    "qwen2": lambda n: Qwen2Config(
        num_hidden_layers=n, intermediate_size=10, **_WINDOW, **_TEXT, **_GROUPED
    ),
    "mistral": lambda n: MistralConfig(num_hidden_layers=n, sliding_window=3, **_TEXT, **_WIDE),
    "smollm3": lambda n: SmolLM3Config(
        num_hidden_layers=n,
        intermediate_size=10,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        no_rope_layers=[1, 0, 1][:n],
        layer_types=list(_KINDS)[:n],
        use_sliding_window=True,
        sliding_window=3,
        **_TEXT,
        **_GROUPED,
    ),
    "qwen3": lambda n: Qwen3Config(num_hidden_layers=n, **_WINDOW, **_TEXT, **_WIDE),
    "gemma3_text": lambda n: Gemma3TextConfig(
        num_hidden_layers=n,
        sliding_window=3,
        layer_types=list(_KINDS)[:n],
        query_pre_attn_scalar=5,
        **_TEXT,
        **_WIDE,
    ),
}


def _plain_backbone(family: str, layers: int = 3, seed: int = 0) -> PreTrainedModel:
    """Hugging Face's own model; no parameter is zero or one, so that each of them matters."""
    with torch.random.fork_rng(devices=[]):
        model = AutoModel.from_config(_CONFIGS[family](layers), **FAMILIES[family].options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0.1, 0.3, generator=generator)
    return model.eval()


def _inputs(family: str, samples: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if FAMILIES[family].grid == "image":
        return {"pixel_values": torch.randn(samples, 1, 8, 8, generator=generator)}
    mask = torch.ones(samples, 7, dtype=torch.int64)
    mask[0, 5:] = 0
    words = torch.randint(1, 30, (samples, 7), generator=generator)
    return {"input_ids": words, "attention_mask": mask}


def _samples(count: int, seed: int = 0) -> Samples:
    """Noisy images of one bright quadrant; the class says which."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=generator)
    pixels = 0.5 * torch.randn(count, 1, 8, 8, generator=generator)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[0].unflatten(0, (2, 4)).unflatten(2, (2, 4))[label // 2, :, label % 2] += 0.7
    return Samples({"pixel_values": pixels}, labels, torch.full((count,), 64))


@pytest.fixture(scope="session")
def plain_backbone() -> Callable[..., PreTrainedModel]:
    """``plain_backbone(family, layers=3, seed=0)``: a tiny Hugging Face model."""
    return _plain_backbone


@pytest.fixture(scope="session")
def make_inputs() -> Callable[..., dict[str, Tensor]]:
    """``make_inputs(family, samples=4, seed=0)``: what such a model takes; one text is short."""
    return _inputs


@pytest.fixture(scope="session")
def make_samples() -> Callable[..., Samples]:
    """``make_samples(count, seed=0)``: images of 8 × 8 of four classes."""
    return _samples


@pytest.fixture
def make_classifier() -> Callable[..., Classifier]:
    """``make_classifier(family, layers=3, seed=0)``: a reference of four classes."""

    def make(family: str = "vit", layers: int = 3, seed: int = 0) -> Classifier:
        backbone = as_elastic(_plain_backbone(family, layers, seed))
        head = nn.Linear(backbone.config.hidden_size, 4)
        for parameter in head.parameters():
            parameter.data.normal_(generator=torch.Generator().manual_seed(seed))
        return Classifier(backbone, head).eval()

    return make


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer, in the format of the hub."""
    words = (
        "turn the light on what is weather sing it off now please lamp bright rain sun wind "
        "play song loud a"
    )
    from acme_research.frame.generated import tiny_bert

    return tiny_bert(tmp_path_factory.mktemp("text-checkpoint"), words.split())
