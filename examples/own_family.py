"""A family of Transformers that acme-fleet does not know: ``python examples/own_family.py``.

One call tells where a CamemBERT has its parts, and its checkpoints then run a fleet as any other's:
cut, rounded, shipped and loaded again. Needs ``python examples/made.py``, for its sentences.
"""

from pathlib import Path

import torch
import yaml
from made import MADE
from transformers import CamembertConfig, CamembertModel, PreTrainedTokenizerFast

import acme_fleet
from acme_fleet.models.families import FAMILIES, add_family

# The key is the configuration's model_type. CamemBERT names its parts as RoBERTa does; where some
# differ: dataclasses.replace(FAMILIES["roberta"], …); a family that is like none of those there
# names all of them: acme_fleet.models.family.Family(layers=…, query=…, …).
add_family("camembert", FAMILIES["roberta"])


def small_camembert(folder: Path) -> None:
    """An untrained checkpoint; a real one is almanach/camembert-base, for French."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(MADE / "bert")
    tokenizer.save_pretrained(folder)
    config = CamembertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    CamembertModel(config).save_pretrained(folder)


def main() -> None:
    small_camembert(MADE / "camembert")
    settings = yaml.safe_load(Path(__file__).with_name("bert.yaml").read_text())
    settings |= {"name": "camembert", "clusters": settings["clusters"][:1]}
    settings["data"]["train"] = str(MADE / "sentences.jsonl")
    settings["reference"]["checkpoint"] = str(MADE / "camembert")
    run = acme_fleet.customize(acme_fleet.Fleet.parse(settings), "runs/camembert")
    kitchen = run.device("kitchen")
    config = kitchen.model().backbone.config
    print(kitchen)
    print(f"{config.model_type}, heads in each layer: {config.heads_per_layer} of 4")
    print(kitchen.predict("will it rain tomorrow"))


if __name__ == "__main__":
    main()
