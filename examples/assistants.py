"""Ten assistants of one real language model: ``python examples/assistants.py DATA CHECKPOINT``.

DATA is a folder with CLINC150 as ``train.jsonl`` and ``test.jsonl`` (``text``, ``intent`` and
``domain`` on each line; CC BY 3.0, Larson et al. 2019, github.com/clinc/oos-eval),
CHECKPOINT a decoder that fits the memory, such as SmolLM2-135M-Instruct. A device is asked for the
intent of a sentence, and says it in words; each has one domain. ``--quick`` takes few texts and
epochs, to see the whole path.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import yaml

import acme_fleet
from acme_fleet.inspection.complete import Writer
from acme_fleet.pipeline import customize
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.report.terminal.run import print_summary

PUBLIC, OWN, TEST = 3000, 300, 100  # sentences: the cloud's, a device's, a device's to be judged on
QUICK_PUBLIC, QUICK_OWN, QUICK_TEST = 400, 48, 16


def instruction(row: dict[str, str]) -> dict[str, str]:
    """A prompt and its answer: the intent in words."""
    return {
        "prompt": f"Say what is wanted: {row['text']}\nIntent:",
        "answer": f" {row['intent'].replace('_', ' ')}",
        "domain": row["domain"],
    }


def split(data: Path, folder: Path, *, quick: bool) -> dict[str, str]:
    """Write the public, the devices' and the test instructions; returns their paths."""
    public, own, test = (QUICK_PUBLIC, QUICK_OWN, QUICK_TEST) if quick else (PUBLIC, OWN, TEST)
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    tests = [json.loads(line) for line in (data / "test.jsonl").read_text().splitlines()]
    random.Random(0).shuffle(rows)
    random.Random(1).shuffle(tests)
    domains = sorted({row["domain"] for row in rows})

    def each(of: list[dict[str, str]], most: int) -> list[dict[str, str]]:
        return [r for name in domains for r in [r for r in of if r["domain"] == name][:most]]

    parts = {"public": rows[:public], "train": each(rows[public:], own), "test": each(tests, test)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        lines = [json.dumps(instruction(row)) for row in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {name: str((folder / f"{name}.jsonl").resolve()) for name in parts}


def reduced(settings: dict[str, Any]) -> None:
    """Settings of ``--quick``."""
    settings["reference"]["training"]["epochs"] = 1
    settings["backbone"]["distillation"]["training"]["epochs"] = 1
    settings["backbone"]["distillation"]["recovery"]["epochs"] = 1
    settings["backbone"] |= {"importance_samples": 64}
    settings["search"] |= {"steps": 2, "final_samples": 2}
    settings["search"]["fine_tuning"]["epochs"] = 1
    settings["personalization"] |= {"rounds": 1}
    settings["personalization"]["local"]["epochs"] = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/assistants"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    for name in ("train.jsonl", "test.jsonl"):
        if not (arguments.data / name).is_file():
            parser.error(
                f"{arguments.data} has no {name}: CLINC150 (github.com/clinc/oos-eval), a line as "
                '{"text": "what is my balance", "intent": "balance", "domain": "banking"}'
            )

    beside = arguments.out.parent / f"{arguments.out.name}-instructions"
    settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    settings["seed"] = arguments.seed
    settings["data"] |= split(arguments.data, beside, quick=arguments.quick)
    settings["reference"]["checkpoint"] = str(arguments.checkpoint.resolve())
    if arguments.quick:
        reduced(settings)
    fleet = acme_fleet.Fleet.parse(settings)
    with LiveStages() as stages:
        summary = customize(fleet, arguments.out, resume=arguments.resume, observer=stages)
    print_summary(summary)
    lines = (beside / "test.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines[:2]]
    for device in (summary.devices[0].name, summary.devices[-1].name):
        writer = Writer.open(arguments.out, device)
        assert writer is not None
        for answer in writer.complete(prompts, 8):
            print(f"{device}: {answer.prompt}|{answer.text}")
    print(f"report: {(arguments.out / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
