"""The journal that most tests of this folder use."""

from collections.abc import Iterator

import pytest

from oxidize.state.journal import Journal
from tests.support.journals import made


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = made()
    yield journal
    journal.close()
