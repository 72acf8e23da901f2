"""Whether 16 bits are slower here is measured, not guessed from names of processors."""

import pytest

from kerakd import halfspeed


def test_a_number_of_more_bits_takes_longer():
    assert halfspeed.times_as_long("float64") > 1.1


@pytest.mark.parametrize(("ratio", "told"), [(0.6, False), (1.4, False), (1.6, True), (9.84, True)])
def test_a_line_says_how_much_longer_where_it_is_longer(ratio, told, monkeypatch, capsys):
    monkeypatch.setattr(halfspeed, "times_as_long", lambda half: ratio)
    halfspeed.warn("bfloat16")
    line = f"kerakd: --mixed_precision=bfloat16: a convolution takes {ratio:.1f} times as long in bfloat16 as in float32 here; leave"
    assert capsys.readouterr().err.count(line) == told
