"""``python -m acme_research.stories NAME``: one story in a process of its own."""

import importlib
import sys

from acme_research.frame.story import main
from acme_research.stories import module_of

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    main(importlib.import_module(f"acme_research.stories.{module_of(name)}").STORY, arguments)
