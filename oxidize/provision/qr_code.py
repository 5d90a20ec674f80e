"""A QR code for a phone's camera, drawn in a terminal.

The rule: a code that a camera cannot read is not drawn. Two modules share a character, and both colours are set,
because a code in the text's colour would be inverted in a light terminal. Sources: ISO/IEC 18004 on
the quiet zone; the 256 colours of xterm, ctlseqs.
"""

import io

import segno

QUIET_ZONE = 4  # modules of light on every side
QUIET_ZONE_MIN = 2  # in a narrow terminal; every reader that was tried accepts it
_WHITE_ON_BLACK = "\x1b[38;5;231;48;5;16m"
_RESET = "\x1b[0m"


def draw(text: str, columns: int) -> list[str] | None:
    """Return the lines of a QR code of this text; None if it is too long or needs more columns."""
    try:
        code = segno.make(text, error="l", boost_error=False, micro=False)
    except segno.DataOverflowError:
        return None
    for border in (QUIET_ZONE, QUIET_ZONE_MIN):
        width, _ = code.symbol_size(border=border)
        if width <= columns:
            drawn = io.StringIO()
            code.terminal(drawn, compact=True, border=border)
            return [f"{_WHITE_ON_BLACK}{line}{_RESET}" for line in drawn.getvalue().splitlines()]
    return None
