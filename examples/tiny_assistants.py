"""A small LLaMA for six devices, each with a domain: ``python examples/tiny_assistants.py DATA``.

DATA is a folder with CLINC150 as ``train.jsonl`` and ``test.jsonl`` (``text``, ``intent`` and
``domain`` on each line; CC BY 3.0, Larson et al. 2019, github.com/clinc/oos-eval).
The LLaMA is trained first, from nothing, on sentences of all domains that no device has.
"""

import argparse
import json
import random
from pathlib import Path

import yaml

from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.inspection.complete import Writer
from acme_fleet.pipeline import customize
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.report.terminal.run import print_summary
from acme_fleet.training.language_pretraining import LanguageRecipe, pretrain_language
from acme_fleet.training.pretraining import finished

PUBLIC, PRIVATE = 5000, 3600  # sentences
DOMAINS = ("banking", "credit_cards", "home", "small_talk", "travel", "work")
PROMPTS = ("can you", "what is", "i need to")


def split(data: Path, folder: Path) -> dict[str, str]:
    """Write the public sentences, the devices' and the test sentences; returns their paths."""
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    tests = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(rows)
    own = [row for row in rows[PUBLIC:] if row["domain"] in DOMAINS][:PRIVATE]
    parts = {
        "public": rows[:PUBLIC],
        "train": own,
        "test": [row for row in tests if row["domain"] in DOMAINS],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        short = [row for row in part if len(row["text"]) <= 120]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, short)))
    return {name: str((folder / f"{name}.jsonl").resolve()) for name in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-assistants"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    for name in ("train.jsonl", "test.jsonl"):
        if not (arguments.data / name).is_file():
            parser.error(
                f"{arguments.data} has no {name}: CLINC150 (github.com/clinc/oos-eval), a line as "
                '{"text": "what is my balance", "intent": "balance", "domain": "banking"}'
            )

    beside = arguments.out.parent / f"{arguments.out.name}-llama"
    paths = split(arguments.data, beside / "sentences")
    training = Training(epochs=3, batch_size=64, learning_rate=4e-3)
    recipe = LanguageRecipe("llama-nano", training, max_tokens=64, seed=arguments.seed)
    model = beside / "model"
    with LiveStages() as stages:
        if not (model.exists() and finished(model)):
            pretrain_language(
                Path(paths["public"]),
                "text",
                recipe,
                model,
                lambda done, of, note: stages.stage("cloud", "pretrain", done, of, note),
            )
        settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
        settings["seed"] = arguments.seed
        settings["data"] |= paths
        settings["reference"]["checkpoint"] = str(model.resolve())
        fleet = Fleet.parse(settings)
        summary = customize(fleet, arguments.out, resume=arguments.resume, observer=stages)
    print_summary(summary)
    for device in (summary.devices[0].name, summary.devices[-1].name):
        writer = Writer.open(arguments.out, device)
        assert writer is not None
        for answer in writer.complete(PROMPTS, 12):
            print(f"{device}: {answer.prompt}|{answer.text}")
    print(f"report: {(arguments.out / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
