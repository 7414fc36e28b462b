"""20 classes of CIFAR-100 over ten devices: ``python examples/cifar20.py DATA [--out RUN]``.

DATA is a folder with CIFAR-100 as parquet (``train-*.parquet``, ``test-*.parquet``), for example
a download of the hub's ``uoft-cs/cifar100``. Needs ``pip install 'acme-fleet[data]'``.
"""

import argparse
from pathlib import Path

import yaml

import acme_fleet
from acme_fleet.report.terminal.progress import LiveStages
from acme_fleet.report.terminal.run import print_summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar20"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()

    settings = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    settings["seed"] = arguments.seed
    settings["data"]["train"] = sorted(map(str, arguments.data.resolve().glob("train-*.parquet")))
    settings["data"]["test"] = sorted(map(str, arguments.data.resolve().glob("test-*.parquet")))
    fleet = acme_fleet.Fleet.parse(settings)
    with LiveStages() as stages:
        summary = acme_fleet.customize(
            fleet, arguments.out, resume=arguments.resume, observer=stages
        )
    print_summary(summary)
    print(f"report: {(arguments.out / 'report.html').resolve()}")


if __name__ == "__main__":
    main()
