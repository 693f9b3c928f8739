"""Look-ups: thousands of small requests, beside bare aiohttp doing the same."""

from harness import Case, Group, Target

from parts.common import Bench, lacks, script

__all__ = ["groups"]


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part. The script measures its own rounds: both ways by turns, in one process."""
    name = "look-ups, 100 at once"
    command = script("lookups", "--count", bench.inputs.sizes.lookups, "--rounds", bench.rounds)
    return [
        Group(
            name="lookups",
            title=f"{bench.inputs.sizes.lookups:,} look-ups over one client, beside bare aiohttp in the same process",
            unit="events",
            cases=[Case(name=name, command=command, ours=True, lacking=lacks(programs=("nginx",)))],
            targets=[
                Target(name="lookup_many, CPU beside bare aiohttp", case=name, measure="lookup_many/bare", most=1.3),
                Target(name="lookup, CPU beside bare aiohttp", case=name, measure="lookup/bare", most=1.3),
                Target(
                    name="look-ups, open sockets: 100 connections and that of the sign-in",
                    case=name,
                    measure="sockets",
                    most=101,
                ),
                Target(
                    name="look-ups, growth of memory after the first fifth",
                    case=name,
                    measure="growth",
                    most=2,
                    unit="MB",
                ),
            ],
            figures={
                "bare_us": "bare us",
                "lookup_many_us": "lookup_many us",
                "lookup_us": "lookup us",
                "sockets": "sockets",
                "growth": "growth MB",
            },
            rounds=1,
        )
    ]
