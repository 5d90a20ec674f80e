"""QR codes: every module is where the code has it, however many of them share a character."""

import unicodedata

import pytest
import segno

from oxidize.provision.qr_code import QUIET_ZONE, QUIET_ZONE_MIN, draw, picture

TEXT = "PrivateKey=" + "abcdefghij" * 20
OLDER = {"SPACE": "", "LEFT HALF BLOCK": "135", "RIGHT HALF BLOCK": "246", "FULL BLOCK": "123456"}
COLOURS = "\x1b[38;5;231;48;5;16m", "\x1b[0m"


def modules_of(line: str) -> list[str]:
    """Return which of its six modules are light in each character of a line, by their names in Unicode."""
    names = map(unicodedata.name, line.removeprefix(COLOURS[0]).removesuffix(COLOURS[1]))
    return [OLDER[name] if name in OLDER else name.removeprefix("BLOCK SEXTANT-") for name in names]


@pytest.mark.parametrize(("lines_max", "border"), [(21, QUIET_ZONE), (19, QUIET_ZONE_MIN)])
def test_a_code_in_characters_of_six_modules_is_the_code(lines_max: int, border: int) -> None:
    code = segno.make_qr(TEXT, error="l", boost_error=False)
    drawn = draw(TEXT, 80, lines_max)
    assert drawn is not None
    found = {
        (3 * row + (int(bit) - 1) // 2, 2 * column + (int(bit) - 1) % 2)
        for row, line in enumerate(drawn)
        for column, light in enumerate(modules_of(line))
        for bit in light
    }
    rows = [list(row) for row in code.matrix_iter(border=border)]
    assert found == {(y, x) for y, row in enumerate(rows) for x, is_dark in enumerate(row) if not is_dark}


def test_a_code_takes_the_most_readable_form_that_fits() -> None:
    width = int(segno.make_qr(TEXT, error="l", boost_error=False).symbol_size(border=0)[0])
    for columns, lines, expected in [(80, 40, QUIET_ZONE), (width + 5, 40, QUIET_ZONE_MIN)]:
        drawn = draw(TEXT, columns, lines)
        assert drawn is not None
        assert len(drawn[0].removeprefix(COLOURS[0]).removesuffix(COLOURS[1])) == width + 2 * expected
        assert "▀" in drawn[-1]
    assert draw(TEXT, width // 2, 40) is None
    assert draw(TEXT, 80, width // 3) is None
    assert draw("a" * 5000, 800, 800) is None


def test_a_picture_of_a_text_that_is_too_long_is_none() -> None:
    assert (picture("a" * 5000, "svg"), (picture("a", "png") or b"")[:4]) == (None, b"\x89PNG")
