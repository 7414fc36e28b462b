"""The fleet of the language benchmarks: intents as words, a domain of CLINC150 for each device.

Without a checkpoint a LLaMA is trained first, from nothing, on the public instructions.
"""

import json
import runpy
from argparse import ArgumentParser, Namespace
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.runs.summary import Summary
from acme_fleet.training.language_pretraining import LanguageRecipe, pretrain_language
from acme_fleet.training.pretraining import finished
from acme_research.frame.places import EXAMPLES
from acme_research.frame.runs import Begin, finished_run
from acme_research.frame.settings import benchmark_config, changed

_TINY_STORAGE = {"160 MB": "500 kB", "80 MB": "260 kB"}


def read_options(doc: str | None) -> Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of CLINC150")
    parser.add_argument("--out", type=Path, default=Path("runs/lm"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--checkpoint", type=Path, help="a decoder, in the place of a tiny one")
    parser.add_argument("--quick", action="store_true", help="few texts and epochs")
    return parser.parse_args()


def about(options: Namespace) -> dict[str, Any]:
    """For a result's details: the whole model, in words, and how much was done."""
    tiny = "a LLaMA of 0.3 million parameters, trained from nothing"
    reference = options.checkpoint.name if options.checkpoint else tiny
    return {"reference": reference, "quick": options.quick}


@dataclass(frozen=True)
class Shares:
    """Texts of a device.

    Attributes:
        own: texts of a domain to train and to choose on, at most.
        persons: devices that share a domain's texts out, every other one to each.
    """

    own: int | None = None
    persons: int = 1


def settings_of(options: Namespace, seed: int, shares: Shares = Shares()) -> dict[str, Any]:
    """The fleet's settings, and its data and reference in place."""
    example = runpy.run_path(str(EXAMPLES / "assistants.py"))  # whose data these are
    settings = yaml.safe_load((EXAMPLES / "assistants.yaml").read_text())
    paths = example["split"](options.data, options.out / "instructions", quick=options.quick)
    for part in ("train", "test"):
        paths[part] = _shared(Path(paths[part]), shares, test=part == "test")
    if options.checkpoint is None:
        settings = changed(settings, benchmark_config("lm_tiny"))
        for cluster in settings["clusters"]:
            for device in cluster["devices"]:
                device["storage"] = _TINY_STORAGE[device["storage"]]
        settings["reference"]["checkpoint"] = str(_pretrained(Path(paths["public"]), options))
    else:
        settings["reference"]["checkpoint"] = str(options.checkpoint.resolve())
    if options.quick:
        example["reduced"](settings)
    settings["data"] |= paths | {"partition": {"scheme": "natural", "column": "person"}}
    for cluster in settings["clusters"]:
        cluster["devices"] = [
            device | {"name": f"{device['name']}{'abcdefgh'[number] * (shares.persons > 1)}"}
            for device in cluster["devices"]
            for number in range(shares.persons)
        ]
    return settings | {"seed": seed}


def _shared(texts: Path, shares: Shares, *, test: bool) -> str:
    """The first texts of each domain with whose they are, in a file of their own."""
    seen: Counter[str] = Counter()
    lines = []
    for line in texts.read_text().splitlines():
        row = json.loads(line)
        number = seen[row["domain"]]
        seen[row["domain"]] += 1
        if test or shares.own is None or number < shares.own:
            row["person"] = f"{row['domain']}-{number % shares.persons}"
            lines.append(json.dumps(row))
    path = texts.with_name(f"{texts.stem}-{shares.own or 'all'}-{shares.persons}.jsonl")
    path.write_text("\n".join(lines))
    return str(path)


def _pretrained(public: Path, options: Namespace) -> Path:
    folder = (options.out / "llama").resolve()
    if not (folder.exists() and finished(folder)):
        rows = [json.loads(line) for line in public.read_text().splitlines()]
        texts = options.out / "texts.jsonl"
        lines = [json.dumps({"text": row["prompt"] + row["answer"]}) for row in rows]
        texts.write_text("\n".join(lines))
        training = Training(epochs=2 if options.quick else 6, batch_size=64, learning_rate=4e-3)
        recipe = LanguageRecipe("llama-nano", training, max_tokens=96, seed=0)
        pretrain_language(texts, "text", recipe, folder, lambda *_: None)
    return folder


def run_of(
    options: Namespace,
    seed: int,
    name: str,
    changes: dict[str, Any],
    begin: Begin | None = None,
    shares: Shares = Shares(),
) -> tuple[Path, Summary]:
    """A finished run in the folder ``name``, with changes of the fleet's settings.

    ``begin`` puts into a new run directory what another run has done already.
    """
    fleet = Fleet.parse(changed(settings_of(options, seed, shares), changes))
    path = options.out / f"seed-{seed}" / name
    return path, finished_run(fleet, path, begin)
