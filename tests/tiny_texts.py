"""Short texts of three intents, whose words tell them apart."""

from __future__ import annotations

import random

SAID = {
    "light": ["turn", "light", "on", "off", "lamp", "bright"],
    "weather": ["what", "is", "weather", "rain", "sun", "wind"],
    "music": ["sing", "play", "song", "now", "loud", "please"],
}


def said(count: int) -> list[dict[str, str]]:
    """Texts with their intents, the same ones each time."""
    draw, rows = random.Random(0), []
    for number in range(count):
        intent = sorted(SAID)[number % 3]
        text = " ".join(draw.choices(SAID[intent], k=draw.randint(2, 6)))
        rows.append({"text": text, "intent": intent})
    return rows
