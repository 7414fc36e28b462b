"""``model.pte`` for ExecuTorch with XNNPACK: phones and boards, one input at a time."""

from __future__ import annotations

import copy
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.deploy.base import Format, Inputs, Logits, Written, logits_of, script
from acme_fleet.deploy.rounded import Int8Embedding, packed
from acme_fleet.deploy.whole import INPUTS, OUTPUTS, OfImages, OfTexts, silent
from acme_fleet.errors import ArtifactError, FleetError
from acme_fleet.inspection.predict import DeviceModel
from acme_fleet.models.backbone.precision import Int8Linear
from acme_fleet.models.features import CustomizedModel
from acme_fleet.seeding import threads as using
from acme_fleet_runtime.manifest import TOKENIZER, Port, Program

PROGRAM, MODEL = "executorch", "model.pte"
_MINIMUM = "1.5"
_NEEDS = ("executorch", "torchao")
# PyTorch's exporter takes two tokens, a map of one, for a case of its own. It is none, as the
# comparison of short texts with PyTorch shows; XNNPACK needs that many.
_LEAST_TOKENS, _TRACED_FROM = 2, 3
_INT8 = (-128, 127, torch.int8)


class _DynamicLinear(nn.Module):
    """XNNPACK's Linear at int8: weights by row, inputs by token with a zero point of their own.

    The device's model rounds inputs without zero points; here 255 steps are between the smallest
    and the largest input.
    """

    numbers: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, numbers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int64))
        self.register_buffer("bias", bias)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The operations by whose names XNNPACK knows this Linear."""
        ops = torch.ops.quantized_decomposed
        scale, zero = ops.choose_qparams_per_token_asymmetric.default(x, torch.int8)
        whole = ops.quantize_per_token.default(x, scale, zero, *_INT8)
        x = ops.dequantize_per_token.default(whole, scale, zero, *_INT8, torch.float32)
        weight = ops.dequantize_per_channel.default(
            self.numbers, self.scale, self.zero, 0, -127, 127, torch.int8
        )
        return F.linear(x, weight, self.bias)


def _for_xnnpack(model: DeviceModel) -> CustomizedModel:
    """The model with XNNPACK's arithmetic.

    Raises:
        FleetError: if XNNPACK lacks its precision.
    """
    precision = model.model.backbone.config.precision
    if precision == "float32":
        return model.model
    if precision != "int8":
        raise FleetError(
            f"{model.folder}: ExecuTorch's XNNPACK runs float32 and int8, not {precision} "
            f"(its groups of 4 bits have no negative scales, its float16 computes in float16 "
            f"too); use --format onnx, or give the device's type these two precisions"
        )
    # Registers what the Linears call.
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    changed = copy.deepcopy(model.model).eval()
    for name, module in list(changed.backbone.named_modules()):
        if isinstance(module, Int8Linear):
            bias = module.state_dict().get("bias")
            linear = _DynamicLinear(*packed(module.weight.detach(), precision), bias)
            changed.backbone.set_submodule(name, linear)
        elif type(module) is nn.Embedding:
            table = Int8Embedding(*packed(module.weight.detach(), precision))
            changed.backbone.set_submodule(name, table)
    return changed


def _pytorch(model: DeviceModel) -> Logits:
    return logits_of(_for_xnnpack(model), model)


def _write(model: DeviceModel, folder: Path) -> Written:
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise FleetError(
            f'exporting to ExecuTorch needs {", ".join(missing)}: pip install "acme-fleet[mobile]"'
        )
    changed, rule = _for_xnnpack(model), model.preprocessing
    if isinstance(rule, ImagePreprocessing):
        shape = (1, *rule.result, rule.channels)
        content = _program(OfImages(changed, rule), torch.zeros(shape, dtype=torch.uint8), None)
        inputs = (Port(INPUTS["images"][0], "uint8", shape),)
    else:
        most = max(rule.max_tokens, _TRACED_FROM + 1)
        ids = torch.ones(1, min(most, 7), dtype=torch.int64)
        content = _program(OfTexts(changed), ids, Dim("tokens", min=_TRACED_FROM, max=most))
        inputs = (Port(INPUTS["texts"][0], "int64", (1, "tokens")),)
        tokenizer = rule.ready().to_str()
        (folder / TOKENIZER).write_text(tokenizer, encoding="utf-8")
    (folder / MODEL).write_bytes(content)
    outputs = tuple(Port(name, "float32", (1, len(model.class_names))) for name in OUTPUTS)
    return Written(Program(PROGRAM, _MINIMUM, None), MODEL, script(PROGRAM), inputs, outputs)


def _program(module: nn.Module, example: Tensor, tokens: Dim | None) -> bytes:
    with silent(), torch.no_grad():
        lowering: Any = import_module("executorch.exir")
        xnnpack: Any = import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        free = None if tokens is None else ({1: tokens},)
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=free)
        lowered = lowering.to_edge_transform_and_lower(
            program, partitioner=[xnnpack.XnnpackPartitioner()]
        )
        return lowered.to_executorch().buffer


def _start(folder: Path, threads: int) -> Logits:
    with silent():
        runtime: Any = import_module("executorch.runtime")
        method = runtime.Runtime.get().load_program(folder / MODEL).load_method("forward")

    def alone(row: Tensor) -> np.ndarray:
        if row.ndim == 2 and row.shape[1] < _LEAST_TOKENS:
            raise ArtifactError(
                f"{folder / MODEL} takes texts of {_LEAST_TOKENS} tokens or more, special ones "
                f"among them; one has {row.shape[1]}"
            )
        # A copy: its memory is the next call's.
        return method.execute([row])[0].numpy().copy()

    def run(inputs: Inputs) -> np.ndarray:
        (name, *mask) = inputs
        rows = torch.from_numpy(inputs[name]).split(1)
        if mask:
            real = torch.from_numpy(inputs[mask[0]]) != 0
            rows = [row[:, kept] for row, kept in zip(rows, real, strict=True)]
        with using(threads):
            return np.concatenate([alone(row.contiguous()) for row in rows])

    return run


EXECUTORCH = Format("executorch", "executorch torch numpy", _write, _start, _pytorch)
