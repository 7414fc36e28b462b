"""The tiles that complete a Mahjong hand: a task for ``acme distill``, with solver and checker.

``python examples/mahjong_waits.py FOLDER`` writes a task file with questions, and what it names;
needs ``pip install mahjong``. ``make`` and ``check`` are what the task's program and checker run.
"""

import argparse
import json
import random
import re
from pathlib import Path

import yaml
from mahjong.hand_calculating.divider import HandDivider
from mahjong.shanten import Shanten

_SUITS = "mpsz"  # characters, circles, bamboo, honours
_TILES = 34
_TILE = re.compile(r"[1-9][mps]|[1-7]z")
_RULES = (
    "A Mahjong hand of 14 tiles is complete if it is four groups and a pair. A group is three "
    "equal tiles, or three tiles of one suit in a row. 1m to 9m, 1p to 9p and 1s to 9s are suits, "
    "1z to 7z are honours and make no rows. There are four of each tile. {question}"
)


def make(seed):
    """A hand of 13 tiles that lacks one, the tiles that complete it, and the steps to them."""
    hand = _complete(random.Random(seed))
    hand[random.Random(f"{seed}/last").choice([t for t in range(_TILES) if hand[t]])] -= 1
    waits = _waits(hand)
    steps = [f"{_name(tile)}: {_groups(hand, tile)}" for tile in waits]
    answer = " ".join(map(_name, waits))
    tiles = " ".join(_name(tile) for tile in range(_TILES) for _ in range(hand[tile]))
    return {
        "question": f"Which tiles complete the hand {tiles}?",
        "answer": answer,
        "reply": f"{'. '.join(steps)}. Tiles: {answer}",
    }


def check(question, answer, reply):
    """True if the tiles behind the last colon of the reply are those of the answer."""
    return set(_TILE.findall(reply.rpartition(":")[2])) == set(answer.split())


def _complete(draw):
    """Counts of the 34 tiles of four groups and a pair."""
    while True:
        hand = [0] * _TILES
        for _ in range(4):
            if draw.random() < 0.25:
                hand[draw.randrange(_TILES)] += 3
            else:
                first = 9 * draw.randrange(3) + draw.randrange(7)
                for tile in range(first, first + 3):
                    hand[tile] += 1
        hand[draw.randrange(_TILES)] += 2
        if max(hand) <= 4:
            return hand


def _waits(hand):
    """The tiles that complete a hand, by the solver."""
    found = []
    for tile in range(_TILES):
        if hand[tile] < 4:
            with_it = hand.copy()
            with_it[tile] += 1
            if Shanten().calculate_shanten(with_it) == Shanten.AGARI_STATE:
                found.append(tile)
    return found


def _groups(hand, tile):
    """The groups of the hand with a tile."""
    with_it = hand.copy()
    with_it[tile] += 1
    divided = HandDivider.divide_hand(with_it)
    return " ".join("".join(map(_name, group)) for group in divided[0])


def _name(tile):
    return f"{tile % 9 + 1}{_SUITS[tile // 9]}"


def _questions(first_seed, count):
    rows = {}
    seed = first_seed
    while len(rows) < count:
        made = make(seed)
        rows[made["question"]] = {key: made[key] for key in ("question", "answer")}
        seed += 1
    return list(rows.values())


def main():
    from acme_fleet.stratos.example_files import write_example

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=200, help="to learn from, and to test on")
    arguments = parser.parse_args()

    task, own = arguments.folder / "task.yaml", str(Path(__file__).resolve())
    write_example(task)
    rows = _questions(0, 2 * arguments.questions)
    for name, part in (("train", rows[0::2]), ("test", rows[1::2])):
        lines = [json.dumps(row) + "\n" for row in part]
        (arguments.folder / f"{name}.jsonl").write_text("".join(lines))
    settings = yaml.safe_load(task.read_text())
    settings["name"] = "mahjong-waits"
    settings["data"]["prompt"] = _RULES
    settings["checker"] = {"kind": "python", "file": own}
    settings["program"] = {"file": own}
    settings["workload"] |= {"prompt_tokens": 256, "answer_tokens": 96}
    settings["coverage"]["questions"] = arguments.questions
    task.write_text(yaml.safe_dump(settings, sort_keys=False))


if __name__ == "__main__":
    main()
