"""Views of a run for people: an HTML page and the terminal."""
