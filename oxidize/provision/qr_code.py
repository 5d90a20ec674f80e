"""A QR code for a phone's camera, drawn in a terminal or into a file.

The rule: a code that a camera cannot read is not drawn. A character of a terminal holds two modules, in one column, or
six where it has too few lines for that: then modules are narrower than high, which readers accept. Both colours are
set, because a code in the text's colour would be inverted in a light terminal. Sources: ISO/IEC 18004 on the quiet
zone; the 256 colours of xterm, ctlseqs; Unicode 13, "Symbols for Legacy Computing", for blocks of six.
"""

import io
from collections.abc import Iterator

import segno

QUIET_ZONE = 4  # modules of light on every side
QUIET_ZONE_MIN = 2  # in a small terminal; every reader that was tried accepts it
PIXELS_PER_MODULE = 8  # of a picture
_WHITE_ON_BLACK = "\x1b[38;5;231;48;5;16m"
_RESET = "\x1b[0m"
_SEXTANTS = 0x1FB00  # of the pattern with only its first module; four of the 64 patterns are older characters
_OLDER_BLOCKS = {0: " ", 0b010101: "\u258c", 0b101010: "\u2590", 0b111111: "\u2588"}


def draw(text: str, columns: int, lines: int) -> list[str] | None:
    """Return the lines of a QR code of this text; None if it is too long, or larger than so many columns and lines."""
    code = _code(text)
    if code is None:
        return None
    for of_six in (False, True):
        for border in (QUIET_ZONE, QUIET_ZONE_MIN):
            drawn = list(_sextants(code, border)) if of_six else _half_blocks(code, border)
            if len(drawn) <= lines and len(drawn[0]) <= columns:
                return [f"{_WHITE_ON_BLACK}{line}{_RESET}" for line in drawn]
    return None


def picture(text: str, form: str) -> bytes | None:
    """Return a QR code of this text as a file of the form "png" or "svg"; None if the text is too long."""
    code, file = _code(text), io.BytesIO()
    if code is None:
        return None
    code.save(file, kind=form, scale=PIXELS_PER_MODULE, border=QUIET_ZONE, light="white")
    return file.getvalue()


def _code(text: str) -> segno.QRCode | None:
    try:
        return segno.make_qr(text, error="l", boost_error=False)
    except segno.DataOverflowError:
        return None


def _half_blocks(code: segno.QRCode, border: int) -> list[str]:
    drawn = io.StringIO()
    code.terminal(drawn, compact=True, border=border)
    return drawn.getvalue().splitlines()


def _sextants(code: segno.QRCode, border: int) -> Iterator[str]:
    """Yield lines of characters of two columns and three rows of modules each; a light module is a set one."""
    rows = [[not module for module in row] for row in code.matrix_iter(border=border)]

    def is_light(row: int, column: int) -> bool:
        return row < len(rows) and column < len(rows[row]) and rows[row][column]

    for top in range(0, len(rows), 3):
        patterns = (
            sum(is_light(top + bit // 2, left + bit % 2) << bit for bit in range(6))
            for left in range(0, len(rows[0]), 2)
        )
        yield "".join(map(_block_of_six, patterns))


def _block_of_six(pattern: int) -> str:
    """Return the character of a pattern: bit 0 for its first module, then row by row."""
    # The patterns that are older characters have no second code point.
    return _OLDER_BLOCKS.get(pattern) or chr(_SEXTANTS + pattern - 1 - (pattern > 21) - (pattern > 42))
