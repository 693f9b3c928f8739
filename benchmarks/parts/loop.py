"""The event loop: how soon a web service answers that shares it with a download at full speed, or with a reader."""

from harness import Case, Group, Target
from inputs import checksum

from parts.common import Bench, clear, script

__all__ = ["groups"]


def groups(bench: Bench) -> list[Group]:
    """Return the groups of this part."""
    archive = bench.inputs.archive()
    cases = [Case(name="nothing else in the loop", command=script("ping", "idle"))]
    names = {}
    if bench.nginx is not None:
        nginx, target = bench.nginx, bench.work / "out.bin"
        plain = bench.inputs.random_bytes(bench.inputs.sizes.plain)
        secure = bench.inputs.random_bytes(bench.inputs.sizes.secure)
        names = {
            "download, plain": ["download", f"{nginx.plain}/{plain.name}", target],
            "download, TLS": [
                "download",
                f"{nginx.secure}/{secure.name}",
                target,
                "--cafile",
                nginx.certificate,
            ],
            "download, plain, verified": [
                "download",
                f"{nginx.plain}/{plain.name}",
                target,
                "--verify",
                checksum(plain),
            ],
        }
    names["archive, full articles"] = ["read", archive]
    for name, arguments in names.items():
        cases.append(Case(name=name, command=script("ping", *arguments), ours=True, before=clear(bench.work)))
    targets = []
    for name in names:
        targets += [
            Target(name=f"{name}, p99 of a ping", case=name, measure="p99", most=20, unit="ms"),
            Target(name=f"{name}, longest hold of the loop", case=name, measure="lag", most=50, unit="ms"),
        ]
    return [
        Group(
            name="loop",
            title="A web service in the same loop, asked each 3 ms by another process",
            cases=cases,
            targets=targets,
            figures={
                "p50": "p50 ms",
                "p99": "p99 ms",
                "worst": "worst ms",
                "lag_p99": "lag p99 ms",
                "lag": "lag worst ms",
            },
        )
    ]
