"""Makes sums of two numbers with the steps to their result; see `program` in the task file."""

import random


def make(seed):
    """A question, its answer, and the reply that a student learns to write."""
    draw = random.Random(seed)
    first, second = draw.randint(10, 99), draw.randint(10, 99)
    tens, units = 10 * (first // 10 + second // 10), first % 10 + second % 10
    return {
        "question": f"What is {first} plus {second}?",
        "answer": first + second,
        "reply": f"Tens make {tens}, units {units}, together {first + second}",
    }
