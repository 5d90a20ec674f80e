"""A QR code for a phone's camera, drawn in a terminal.

The rule: what is drawn can be read off a screen, or nothing is drawn. Two modules share a character, and both colours
are given, because in a light terminal a code of the text's own colour would be a negative. Sources: ISO/IEC 18004 on
the quiet zone; the 256 colours of xterm, ctlseqs.
"""

import io

import segno

QUIET_ZONE = 4  # modules of light on every side
QUIET_ZONE_MIN = 2  # enough for every reader that was tried, where the terminal is narrow
_WHITE_ON_BLACK = "\x1b[38;5;231;48;5;16m"
_RESET = "\x1b[0m"


def draw(text: str, columns: int) -> list[str] | None:
    """Return the lines of a QR code of this text, None where it needs more columns than there are, or is too long."""
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
