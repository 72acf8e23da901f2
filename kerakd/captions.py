"""Names as matplotlib is to show them."""


def shortened(name, most):
    """`name`, of which at most so many characters are shown."""
    return name if len(name) <= most else name[: most - 1] + "…"


def caption(name):
    """`name` as text of a figure: no dollar begins a formula in it, no underscore keeps it out of a legend, and what the font lacks is a box."""
    from matplotlib import font_manager  # half a second's import

    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    drawn = "".join(letter if font.get_char_index(ord(letter)) else "□" for letter in name)
    return (" " if name.startswith("_") else "") + drawn.replace("$", r"\$")
