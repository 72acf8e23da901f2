"""Values and errors as parts of one line."""

import re


def reason(error):
    """The error in one clause; Keras 3 puts the cause behind "Exception encountered:"."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).split("Exception encountered:")[-1].strip()  # without its colors
    return f"{type(error).__name__}: {text}".split("\n")[0].split(". ")[0].rstrip(".")[:200]


def shown(config):
    """Arguments as they are written in a call."""
    return ", ".join(f"{key}={short(value)}" for key, value in config.items())


def short(value):
    """A value as a part of one line."""
    return " ".join(repr(value).split())[:80]
