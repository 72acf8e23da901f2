"""Names as matplotlib is to show them."""


def shortened(name, most):
    """`name`, of which at most so many characters are shown."""
    return name if len(name) <= most else name[: most - 1] + "…"


def caption(name):
    """`name` as text of a figure: no dollar begins a formula in it, and no underscore keeps it out of a legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")
