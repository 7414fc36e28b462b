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
_RUN = re.compile(r"([1-9]+)([mpsz])")
RULES = (
    "A Mahjong hand of 14 tiles is complete if it is four groups and a pair. A group is three "
    "equal tiles, or three tiles of one suit in a row. 1m to 9m, 1p to 9p and 1s to 9s are suits, "
    "1z to 7z are honours and make no rows. There are four of each tile. A hand is written by "
    "suits: 123m 55z are 1m, 2m, 3m, 5z and 5z. End the answer with the tiles that complete the "
    "hand, as in: Tiles: 4p 1s. {question}"
)


def make(seed, groups=4, one_suit=False):
    """A hand that lacks one of its groups and pair, the tiles that complete it, and the steps."""
    hand = _complete(random.Random(seed), groups, one_suit)
    hand[random.Random(f"{seed}/last").choice([t for t in range(_TILES) if hand[t]])] -= 1
    waits = {tile: _groups(hand, tile) for tile in _waits(hand)}
    steps = [_step(hand, suit, waits) for suit in range(4) if any(_suit(hand, suit))]
    answer = " ".join(map(_name, waits))
    return {
        "question": f"Which tiles complete the hand {_written(hand)}?",
        "answer": answer,
        "reply": f"{' '.join(steps)} Tiles: {answer}",
    }


def make_four(seed):
    """The same with four tiles of one suit: a group and a pair, of which one tile is missing."""
    return make(seed, groups=1, one_suit=True)


def check(question, answer, reply):
    """True if the tiles behind the last colon of the reply are those of the answer."""
    return _tiles(reply.rpartition(":")[2]) == _tiles(answer)


def _tiles(text):
    return {digit + suit for digits, suit in _RUN.findall(text) for digit in digits}


def _complete(draw, groups, one_suit):
    """Counts of the 34 tiles of some groups and a pair, of all suits or of one without honours."""
    while True:
        hand, only = [0] * _TILES, draw.randrange(3)
        tiles = range(9 * only, 9 * only + 9) if one_suit else range(_TILES)
        for _ in range(groups):
            if draw.random() < 0.25:
                hand[draw.choice(tiles)] += 3
            else:
                first = 9 * (only if one_suit else draw.randrange(3)) + draw.randrange(7)
                for tile in range(first, first + 3):
                    hand[tile] += 1
        hand[draw.choice(tiles)] += 2
        if max(hand) <= 4:
            return hand


def _waits(hand):
    """The tiles that complete a hand, by the solver; seven pairs and thirteen orphans aside."""
    found = []
    for tile in range(_TILES):
        if hand[tile] < 4:
            shanten = Shanten.calculate_shanten(
                _with(hand, tile), use_chiitoitsu=False, use_kokushi=False
            )
            if shanten == Shanten.AGARI_STATE:
                found.append(tile)
    return found


def _with(hand, tile):
    return [count + (number == tile) for number, count in enumerate(hand)]


def _groups(hand, tile):
    """Groups and pair of the hand with a tile, the first of the ways that the solver finds."""
    whole = _with(hand, tile)
    # The solver divides 14 tiles: a shorter hand is filled up with honours that it has not.
    filler = [each for each in range(27, _TILES) if not whole[each]][: (14 - sum(whole)) // 3]
    whole = [3 if number in filler else count for number, count in enumerate(whole)]
    for divided in HandDivider.divide_hand(whole):
        if sum(len(group) == 2 for group in divided) == 1:  # seven pairs are no groups
            return sorted(group for group in divided if group[0] not in filler)
    raise ValueError(f"{_written(hand)} with {_name(tile)} is not complete")


def _step(hand, suit, waits):
    """A suit's tiles, and its groups with each tile that completes the hand, or without one."""
    own = [tile for tile in waits if tile // 9 == suit]
    ways = [f"{_digits(tile)} {_in_suit(waits[tile], suit)}" for tile in own]
    if not ways:
        ways = [_in_suit(next(iter(waits.values())), suit)]
    return f"{_suit(hand, suit)}: {', '.join(ways)}."


def _in_suit(groups, suit):
    return " ".join(_digits(*group) for group in groups if group[0] // 9 == suit)


def _suit(hand, suit):
    tiles = [tile for tile in range(_TILES) if tile // 9 == suit for _ in range(hand[tile])]
    return _digits(*tiles) + _SUITS[suit] if tiles else ""


def _written(hand):
    return " ".join(filter(None, (_suit(hand, suit) for suit in range(4))))


def _digits(*tiles):
    return "".join(str(tile % 9 + 1) for tile in tiles)


def _name(tile):
    return _digits(tile) + _SUITS[tile // 9]


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
    settings["data"]["prompt"] = RULES
    settings["checker"] = {"kind": "python", "file": own}
    settings["program"] = {"file": own}
    settings["workload"] |= {"prompt_tokens": 256, "answer_tokens": 96}
    settings["coverage"]["questions"] = arguments.questions
    task.write_text(yaml.safe_dump(settings, sort_keys=False))


if __name__ == "__main__":
    main()
