"""Texts: sentences to a voice assistant, the devices of a domain each, MiniLM as the reference."""

from acme_research.frame.story import Story
from acme_research.stories.contest import STAGES, draw, find, measure, of_limits

STORY = Story(
    "clinc150",
    "texts of one domain on each device, against other ways to shrink the same MiniLM",
    "no texts in the paper",
    measure,
    find,
    draw,
    of_limits,
    STAGES,
)
