"""Names as matplotlib shows them."""

import io
import warnings

from matplotlib.figure import Figure

from kerakd.captions import caption, shortened


def test_what_the_font_lacks_is_a_box_and_nobody_is_warned():
    assert caption("Bär") == "Bär" and caption("空 cat") == "□ cat"
    figure = Figure()
    figure.suptitle(caption("空_$x"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO())


def test_no_formula_begins_and_a_legend_takes_it():
    assert caption("_a$b$") == r" _a\$b\$"


def test_long_names_end_in_dots():
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefg", 6) == "abcde…"
