"""Fig. 7 (a): customised models against light-weight ones under each storage limit."""

from acme_research.frame.story import Story
from acme_research.stories.contest import STAGES, draw, find, measure, of_limits

STORY = Story(
    "fig7a",
    "customised against light-weight models of the same size",
    "under 25 M parameters nearly +10 points; +4.07 over Efficient-ViT, +5.62 over Twins-SVT, "
    "nearly +5 over DeViT with 85.3 % of its parameters",
    measure,
    find,
    draw,
    of_limits,
    STAGES,
)
