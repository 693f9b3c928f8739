"""The pytest fixture `wme_simulator`: a simulator in a thread of its own, fresh for each test that uses it.

It works for synchronous and asynchronous tests alike, whatever their plugin. Options come from a marker:

    @pytest.mark.wme_simulator(groups=["group_1"], expires_in=300)
    def test_free_plan(wme_simulator): ...

The server starts with the first use of the fixture.
"""

from collections.abc import Iterator

import pytest

from wme_async.simulator.server import Simulator

__all__ = ["pytest_configure", "wme_simulator"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "wme_simulator(**options): options of the simulator of this test")


@pytest.fixture
def wme_simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A running simulator; `wme_simulator.client_options()` returns the arguments of a client."""
    marker = request.node.get_closest_marker("wme_simulator")
    with Simulator.run_in_thread(**(marker.kwargs if marker is not None else {})) as simulator:
        yield simulator
