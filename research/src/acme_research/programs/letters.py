"""Questions about four letters: six tasks of one form, so that only what a teacher saw differs."""

import random

LETTERS = "abcdefghjkmn"
_ASK = {  # by task; after and before are in the order of LETTERS
    "first": lambda letters: letters[0],
    "last": lambda letters: letters[-1],
    "second": lambda letters: letters[1],
    "third": lambda letters: letters[2],
    "after": lambda letters: LETTERS[(LETTERS.index(letters[-1]) + 1) % len(LETTERS)],
    "before": lambda letters: LETTERS[LETTERS.index(letters[-1]) - 1],
}


def _of(task):
    def make(seed):
        letters = random.Random(seed).choices(LETTERS, k=4)
        answer = _ASK[task](letters)
        return {"question": f"{task} {' '.join(letters)}", "answer": answer, "reply": answer}

    return make


first, last, second, third, after, before = map(_of, _ASK)
