"""Sums: of two numbers, and in words, with the steps to the answer."""

import random

_NAMES = ["Anna", "Ben", "Carla", "Dan", "Eva", "Finn", "Gina", "Hugo"]
_THINGS = ["apples", "books", "cards", "pens", "shells", "stamps"]
_ASK = (
    ("{name} has {a} {thing} and gets {b} more. How many {thing} has {name} now?", "+"),
    ("{name} has {a} {thing} and gives away {b}. How many {thing} are left?", "-"),
    ("{name} has {a} {thing}, {other} has {b} more. How many {thing} has {other}?", "+"),
    ("{name} has {a} {thing}, {other} has {b} fewer. How many {thing} has {other}?", "-"),
)


def repeated(seed):
    """A number again."""
    number = str(random.Random(seed).randint(10, 9999))
    return {"question": f"Repeat the number: {number}", "answer": number, "reply": number}


def plus(seed):
    """The sum of two numbers up to 30."""
    draw = random.Random(seed)
    a, b = draw.randint(1, 30), draw.randint(1, 30)
    answer = str(a + b)
    return {
        "question": f"What is {a} plus {b}?",
        "answer": answer,
        "reply": f"{a} + {b} = {answer}",
    }


def in_words(seed, most=20):
    """A problem of one step."""
    draw = random.Random(seed)
    name, other = draw.sample(_NAMES, 2)
    text, sign = draw.choice(_ASK)
    a, b = draw.randint(1, most), draw.randint(1, most)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    answer = a + b if sign == "+" else a - b
    question = text.format(name=name, other=other, thing=draw.choice(_THINGS), a=a, b=b)
    return {"question": question, "answer": str(answer), "reply": f"{a} {sign} {b} = {answer}"}


def small_in_words(seed):
    """The same with numbers up to 9."""
    return in_words(seed, most=9)
