"""Questions about four letters: six tasks of one form, so that only what a teacher saw differs."""

import random

LETTERS = "abcdefghjkmn"
_ASK = {
    "first": lambda letters: letters[0],
    "last": lambda letters: letters[-1],
    "second": lambda letters: letters[1],
    "third": lambda letters: letters[2],
    "after": lambda letters: LETTERS[(LETTERS.index(letters[-1]) + 1) % len(LETTERS)],
    "before": lambda letters: LETTERS[LETTERS.index(letters[-1]) - 1],
}


def first(seed):
    """The first letter."""
    return _made("first", seed)


def last(seed):
    """The last letter."""
    return _made("last", seed)


def second(seed):
    """The second letter."""
    return _made("second", seed)


def third(seed):
    """The third letter."""
    return _made("third", seed)


def after(seed):
    """The letter after the last one, in the order of :data:`LETTERS`."""
    return _made("after", seed)


def before(seed):
    """The letter before the last one."""
    return _made("before", seed)


def _made(task, seed):
    letters = random.Random(seed).choices(LETTERS, k=4)
    answer = _ASK[task](letters)
    return {"question": f"{task} {' '.join(letters)}", "answer": answer, "reply": answer}
