"""GGUF: what the file holds is the device's model, for three readers and llama.cpp."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from acme_fleet.config.devices import Precision
from acme_fleet.deploy.export import export, origin_alone
from acme_fleet.errors import FleetError
from acme_fleet.inspection.complete import Writer
from acme_fleet.messages.header_plan import Block, Genotype
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.module import NoHeader, build_header
from acme_fleet.models.shipped import load_device_model
from acme_fleet_runtime.manifest import Manifest, Speed, read_manifest
from tiny_language import bytewise_decoder, tiny_llama, writer_folder

gguf: Any = pytest.importorskip("gguf")
SEARCHED = Genotype(
    blocks=(Block(inputs=(0, 1), operations=("conv3", "max_pool")),), cells=1, channels=4
)
LINEAR = Genotype(
    blocks=(Block(inputs=(0, 0), operations=("identity", "identity")),), cells=1, channels=4
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = bytewise_decoder(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


def _exported(folder: Path, out: Path) -> Manifest:
    return export(origin_alone(folder, ()), "gguf", out, force=False, without_header=True).manifest


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4"])
@pytest.mark.parametrize(("family", "share"), [("llama", 1.0), ("qwen2", 1.0), ("qwen3", 0.5)])
def test_the_file_holds_the_devices_weights(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    family: str,
    share: float,
    precision: Precision,
):
    folder = writer_folder(checkpoint(family), tmp_path / "own", SEARCHED, precision, share)
    manifest = _exported(folder, tmp_path / "out")
    assert manifest.verification.same_class > 0.95
    assert manifest.notes[0].startswith("not the personal model: the device's header was left out")
    state = load_device_model(folder).backbone.state_dict()
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    table = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[family.upper()], len({n.split(".")[1] for n in state if "layers" in n})
    )
    found = {one.name: one for one in reader.tensors}
    for name, weight in state.items():
        module, _, leaf = f"model.{name}".rpartition(".")
        one = found.pop(f"{table.get_name(module)}.{leaf}")
        values = torch.from_numpy(gguf.dequantize(one.data, one.tensor_type).copy())
        if family == "llama" and module.rpartition(".")[2] in ("q_proj", "k_proj"):
            values = values.unflatten(0, (-1, 8, 2)).transpose(1, 2).flatten(0, 2)
        kinds = {"float32": "F32", "float16": "F16", "int8": "Q8_0", "int4": "Q4_0"}
        assert one.tensor_type.name == (kinds[precision] if weight.ndim == 2 else "F32")
        bound = float(weight.abs().max()) * 2.0**-11 if precision == "int8" else 0.0
        torch.testing.assert_close(values, weight.float(), rtol=0, atol=bound)
    assert not found


def test_rows_that_fill_no_groups_are_rounded_and_this_is_told(
    checkpoint: Callable[[str], Path], tmp_path: Path
):
    folder = writer_folder(checkpoint("llama"), tmp_path / "own", SEARCHED, "int4", 0.7)
    notes = _exported(folder, tmp_path / "out").notes
    assert any("were rounded to float16: their rows have no multiple of 32" in n for n in notes)


def _by_transformers(file: Path) -> PreTrainedModel:
    """The model that transformers' own reader of GGUF finds."""
    content = load_gguf_checkpoint(file)["config"]
    model = LlamaForCausalLM(LlamaConfig(**content)).eval()
    tensors = load_gguf_checkpoint(file, return_tensors=True, model_to_load=model)["tensors"]
    left = model.load_state_dict(tensors, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= {"lm_head.weight"}
    return model


def test_transformers_reads_the_same_model_and_tokenizer(
    checkpoint: Callable[[str], Path], tmp_path: Path
):
    place = checkpoint("llama")
    folder = writer_folder(place, tmp_path / "own", SEARCHED)
    _exported(folder, tmp_path / "out")
    read = _by_transformers(tmp_path / "out" / "model.gguf")
    ids = torch.randint(3, 250, (2, 17), generator=torch.Generator().manual_seed(0))
    ours = CustomizedModel(load_device_model(folder).backbone, NoHeader())(input_ids=ids)
    torch.testing.assert_close(read(ids).logits, ours.transpose(1, 2), rtol=1e-4, atol=1e-4)
    ours, theirs = (
        AutoTokenizer.from_pretrained(place, **further)
        for place, further in ((folder, {}), (tmp_path / "out", {"gguf_file": "model.gguf"}))
    )
    text = "turn the lights ON, it is 12:30 – naïve"
    assert theirs(text, add_special_tokens=False) == ours(text, add_special_tokens=False)
    assert theirs.chat_template == ours.chat_template


def test_a_header_that_llama_cpp_cannot_run_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
):
    folder = writer_folder(checkpoint("llama"), tmp_path / "own", SEARCHED)
    with pytest.raises(FleetError, match=r"has none for the device's header, \[conv3\(last\)"):
        export(origin_alone(folder, ()), "gguf", tmp_path / "out", force=False)
    assert not (tmp_path / "out").exists()


def _linear_folder(checkpoint: Path, folder: Path) -> Path:
    """A device's folder whose header has no constants."""
    made = writer_folder(checkpoint, folder, LINEAR)
    model = load_device_model(made)
    assert isinstance(model.header, nn.Module)
    state = {
        name: torch.zeros_like(x) if name.endswith("bias") else x
        for name, x in model.header.state_dict().items()
    }
    from acme_fleet.models.shipped import read_description, read_preprocessing, save_device_model

    header = build_header(read_description(made).header, state)
    whole = CustomizedModel(model.backbone, header)
    save_device_model(made, whole, header, [], read_preprocessing(made), [])
    return made


def test_a_linear_header_is_folded_into_the_language_head(
    checkpoint: Callable[[str], Path], tmp_path: Path
):
    folder = _linear_folder(checkpoint("llama"), tmp_path / "own")
    done = export(origin_alone(folder, ()), "gguf", tmp_path / "out", force=False)
    assert "folded into the language head" in done.manifest.notes[0]
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    read = _by_transformers(tmp_path / "out" / "model.gguf")
    ours, plain = load_device_model(folder)(ids), load_language_model(checkpoint("llama"))
    torch.testing.assert_close(read(ids).logits, ours.transpose(1, 2), rtol=1e-4, atol=1e-4)
    bare = CustomizedModel(plain, NoHeader())(input_ids=ids)
    assert not torch.allclose(ours, bare, atol=0.05)


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path):
    plain = tiny_llama(tmp_path / "words")
    folder = writer_folder(plain, tmp_path / "own", SEARCHED)
    with pytest.raises(FleetError, match=r"the tokenizer \(WordLevel, WhitespaceSplit\) is none"):
        _exported(folder, tmp_path / "out")
    odd = bytewise_decoder(tmp_path / "odd", "smollm3")
    folder = writer_folder(odd, tmp_path / "odd-own", SEARCHED)
    with pytest.raises(FleetError, match="smollm3 models are not written"):
        _exported(folder, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_writes_the_same_tokens(
    checkpoint: Callable[[str], Path], tmp_path: Path, family: str
):
    from acme_fleet.deploy.gguf_format import llama

    folder = writer_folder(checkpoint(family), tmp_path / "own", SEARCHED, share=0.5, strength=0)
    done = export(origin_alone(folder, ()), "gguf", tmp_path / "out", force=False)
    assert isinstance(read_manifest(tmp_path / "out").latency, Speed)
    assert done.refusals == ()
    writer = Writer.open(folder, None)
    assert writer is not None
    go_on = llama(tmp_path / "out" / "model.gguf", 1)
    for text in ("turn light on", "what", "wind and sun"):
        tokens = writer.preprocessing.prompt(text)
        ours = writer.model.most_probable([torch.tensor(tokens)], 12)[0].tolist()
        theirs = list(itertools.islice(go_on(tokens), len(ours)))
        assert theirs == ours
    program = import_module("llama_cpp")
    loaded = program.Llama(str(tmp_path / "out" / "model.gguf"), verbose=False)
    text = "turn the lights ON, it is 12:30 – naïve"
    assert loaded.tokenize(text.encode(), special=True) == writer.preprocessing.prompt(text)
