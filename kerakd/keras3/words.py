"""Values and errors as parts of one line."""


def reason(error):
    """The error in one clause; Keras 3 puts the cause behind "Exception encountered:"."""
    text = str(error).split("Exception encountered:")[-1].strip()
    return f"{type(error).__name__}: {text}".split("\n")[0].split(". ")[0].rstrip(".")[:200]


def shown(config):
    """Arguments as they are written in a call."""
    return ", ".join(f"{key}={short(value)}" for key, value in config.items())


def short(value):
    """A value as a part of one line."""
    return " ".join(repr(value).split())[:80]
