"""Scripts that go into artifacts as they are: they need none of this package."""
