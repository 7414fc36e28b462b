"""Bytes of training and of serving (ours)."""

from __future__ import annotations

from acme_fleet.config.devices import Precision
from acme_fleet.stratos.predictors.size import ModelSize, weights_bytes

_FLOAT32, _CACHE = 4, 2
# Numbers that autograd keeps for each token of a LLaMA-like decoder, counted with PyTorch's hooks
# for saved tensors: 10 h + 4 n in each layer; the logits, their log-softmax and gradient once.
_HIDDEN_KEPT, _NEURONS_KEPT, _LOGITS_KEPT = 10, 4, 3


def activation_bytes(size: ModelSize, sequences: int, tokens: int) -> float:
    """Bytes that a forward pass keeps for the backward pass: 4·b·s·(L·(10 h + 4 n) + 3 V).

    Args:
        size: h, n, L and V. sequences: b. tokens: s of each, padding included.
    """
    layer = _HIDDEN_KEPT * size.hidden + _NEURONS_KEPT * size.neurons
    each = size.layers * layer + _LOGITS_KEPT * size.vocabulary
    return float(_FLOAT32 * sequences * tokens * each)


def training_bytes(size: ModelSize, sequences: int, tokens: int) -> float:
    """Peak of a training step with AdamW: 12 N + max(activations, 4 N).

    Weights and two moments stay. Gradients take the place of activations while the backward pass
    goes on, so that the peak is at its beginning or at its end.
    """
    gradients = _FLOAT32 * size.parameters
    return 3 * gradients + max(activation_bytes(size, sequences, tokens), gradients)


def distillation_bytes(
    student: ModelSize,
    teacher: ModelSize,
    precision: Precision,
    sequences: int,
    tokens: int,
    *,
    logits: bool,
) -> float:
    """Peak of the distillation: the student's training, and the teacher beside it for logits.

    With logits the teacher's weights are there, and its logits and their log-softmax. With answers
    the teacher has answered before, see :func:`serving_bytes`.
    """
    total = training_bytes(student, sequences, tokens)
    if logits:
        total += weights_bytes(teacher, precision)
        total += 2.0 * _FLOAT32 * sequences * tokens * teacher.vocabulary
    return total


def cache_bytes(size: ModelSize, sequences: int, tokens: int) -> float:
    """Keys and values of all tokens in 16 bits: 2·2·L·keys·b·s."""
    return float(2 * _CACHE * size.layers * size.keys * sequences * tokens)


def serving_bytes(size: ModelSize, weights: float, sequences: int, tokens: int) -> float:
    """Weights, KV cache, and the logits of one token of each sequence.

    Args:
        size: of the model. weights: their bytes.
        sequences: answered at once. tokens: of a question with its answer.
    """
    logits = _FLOAT32 * sequences * size.vocabulary
    return weights + cache_bytes(size, sequences, tokens) + logits
