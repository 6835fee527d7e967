"""A manager, and a service that applications call: what every deploy test has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..conftest import connect, ending, start_manager
from .servers import Deploy, service_at_a_port


@pytest.fixture
def deploy(address: str) -> Iterator[Deploy]:
    """A manager as an operator starts it, a client of ours, and a service."""
    with (
        ending(start_manager(address)) as manager,
        connect(address) as client,
        service_at_a_port() as (service, place),
    ):
        yield Deploy(manager, client, service, place, address)
