"""What most tests of the core use."""

from __future__ import annotations

import pytest

from flask_lifecycle import Lifecycle
from flask_lifecycle._core.inflight import Ledger


@pytest.fixture
def lifecycle() -> Lifecycle:
    return Lifecycle()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()
