"""The pipelines under diffusers' names."""


def __getattr__(name: str) -> object:
    """A name of the face, read when it is first asked for: the modules here are read by it."""
    import enlarger.diffusers

    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(enlarger.diffusers, name)
