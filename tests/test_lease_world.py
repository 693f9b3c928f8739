"""Leases of many hosts over hours of virtual time: nobody reads a part twice, and no part is left alone for long."""

import pytest
from lease_world import PARTS, Figures, Weather, World, run_in_virtual_time

CALM = Weather(lost_answers=0.0005)
STORM = Weather(deaths=3.0, sleeps=3.0, cuts=3.0, leaves=3.0, lost_answers=0.01, outages=3.0)
"""Something happens to each host every five minutes, and to the store every twenty."""


def live(*, groups: int, hosts: int, hours: float, seed: int) -> tuple[Figures, Figures]:
    """Let hosts join, and calm weather follow a storm; return the figures of both."""

    async def main() -> tuple[Figures, Figures]:
        world = World(groups=groups, hosts=hosts, seed=seed)
        await world.start()
        await world.pass_by(1 / 20, CALM)
        storm = await world.pass_by(hours, STORM)
        await world.pass_by(1 / 10, CALM)
        calm = await world.pass_by(hours, CALM)
        for shares in world.shares().values():
            assert sum(shares) == PARTS
            assert max(shares) - min(shares) <= 1
        await world.stop()
        return storm, calm

    return run_in_virtual_time(main)


def check(storm: Figures, calm: Figures) -> None:
    assert storm.faults > 10
    for figures in (storm, calm):
        assert figures.overlaps == 0
        assert figures.without_owner <= 2
    assert calm.moves < 2


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.servers)])
def test_some_hosts_share_some_streams_through_a_storm(seed: int) -> None:
    check(*live(groups=3, hosts=12, hours=0.5, seed=seed))


@pytest.mark.torture
@pytest.mark.timeout(1800)
def test_a_thousand_hosts_share_a_hundred_streams_through_a_storm(capsys: pytest.CaptureFixture[str]) -> None:
    storm, calm = live(groups=100, hosts=1000, hours=1.0, seed=1)
    with capsys.disabled():
        print(f"\nstorm: {storm}\ncalm: {calm}")  # noqa: T201  # the figures of the run
    check(storm, calm)
