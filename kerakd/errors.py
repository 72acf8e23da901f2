"""The one error that a user can mend: what was expected, what was received, what to do."""


class BadInput(ValueError):
    """Raised for input that kerakd refuses; the message says expected, received and remedy.

    The programs print it as one line and exit with status 2. Before a run begins nothing was written or changed; later the message says what is kept.
    """


def first_line(error, most=200):
    """What another library's error says first, at most so many characters; of one that says nothing its type."""
    said = str(error).strip()
    return said.splitlines()[0][:most] if said else type(error).__name__


class Diverged(BadInput):
    """Raised where the loss of a training step, or a weight or interval that it reads, is not a finite number.

    The step changes no trained weight, unless XLA compiled it, which leaves such checks out.
    """
