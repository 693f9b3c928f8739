"""Pytest fixtures: `wme_simulator`, and `wme_environment` for code that makes its client from the environment.

`wme_simulator` is a simulator in a thread of its own, fresh for each test that uses it. It works for synchronous and
asynchronous tests alike, whatever their plugin. Options come from a marker:

    @pytest.mark.wme_simulator(groups=["group_1"], expires_in=300, world={"projects": ["enwiki"], "pages": 40})
    def test_free_plan(wme_simulator): ...

A `world` is a dict of the arguments of `World`, as each test has a world of its own: `wme_simulator.world`.

`wme_environment` is the same simulator, and for the time of the test the environment leads to it: `Client.from_env()`
and the command line use it, and retry without waiting.

    def test_my_program(wme_environment):
        assert my_program.main() == 0
        assert wme_environment.requests.count("api") == 1

The server starts with the first use of a fixture.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from wme_async.simulator.server import Simulator

__all__ = ["pytest_configure", "wme_environment", "wme_simulator"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "wme_simulator(**options): options of the simulator of this test")


@pytest.fixture
def wme_simulator(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    """A running simulator; `wme_simulator.client_options()` returns the arguments of a client."""
    marker = request.node.get_closest_marker("wme_simulator")
    where = f"@pytest.mark.wme_simulator of {request.node.nodeid}"
    if marker is not None and marker.args:
        message = f"{where}: its options are keyword arguments, such as articles=5, not {marker.args[0]!r}"
        pytest.fail(message, pytrace=False)
    with contextlib.ExitStack() as stack:
        try:
            options = marker.kwargs if marker is not None else {}
            simulator = stack.enter_context(Simulator.run_in_thread(**options))
        except (TypeError, ValueError) as error:
            # Without a marker these are errors of ours.
            if marker is None:
                raise
            pytest.fail(f"{where}: {error}", pytrace=False)
        yield simulator


@pytest.fixture
def wme_environment(wme_simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """The simulator, with an environment that leads to it: its account and hosts, and retries without waiting.

    All other variables that begin with `WME_` are unset, so that no token, profile or account of yours is used.
    """
    for name in [name for name in os.environ if name.startswith("WME_")]:
        monkeypatch.delenv(name)
    for name, value in {**wme_simulator.environment(), "WME_RETRY_BASE": "0"}.items():
        monkeypatch.setenv(name, value)
    return wme_simulator
