"""Other releases of this code: the constants in which they differ."""

from collections.abc import Mapping
from typing import Any

import oxidize
from oxidize.runtime import startup
from oxidize.state import session_state

Release = Mapping[tuple[Any, str], object]

THIS: Release = {}
LATER: Release = {(oxidize, "__version__"): "9.0.0"}
# A later release whose records only itself and later ones read.
INCOMPATIBLE: Release = {
    (oxidize, "__version__"): "9.1.0",
    (session_state, "MIN_READER"): 2,
    (session_state, "FORMAT"): 2,
    (startup, "FORMAT"): 2,
}
RELEASES: tuple[Release, ...] = (THIS, LATER, LATER, INCOMPATIBLE)
