"""Write the page of endpoints (endpoints.md) from the table of the package.

python docs/make_endpoints.py            write the page
python docs/make_endpoints.py --check    fail if the page is out of date
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from wme_async._client.resources import RESOURCES, Resource

TARGET = Path(__file__).with_name("endpoints.md")


class Endpoint(NamedTuple):
    """One method of one path, and the call that sends it."""

    role: str
    method: str
    path: str
    call: str
    resource: Resource


# The argument of the method that returns a resource, by the placeholder of its path.
ARGUMENTS = {"hour": "(hour)", "snapshot": "(id)"}
CALLS = {
    "auth.login": "auth.login()",
    "auth.refresh": "of itself, before the token ends",
    "auth.revoke": "auth.revoke()",
    "auth.user": "auth.user()",
}
HOSTS = {role: f"{role}.enterprise.wikimedia.com" for role in ("api", "auth", "realtime")}

LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "auth": {
        "/v1/create-user": "accounts are made on the dashboard",
        "/v1/confirm-user": "accounts are made on the dashboard",
        "/v1/resend-confirm": "accounts are made on the dashboard",
        "/v1/captcha": "belongs to making an account",
        "/v1/captcha/{id}": "belongs to making an account",
        "/v1/new-password-required": "a person answers this challenge, on the dashboard",
        "/v1/change-password": "passwords are set on the dashboard",
        "/v1/forgot-password": "passwords are set on the dashboard",
        "/v1/forgot-password-confirm": "passwords are set on the dashboard",
        "/v1/status": "tells that the process runs, and no more",
        "/healthz": "tells that the process runs, and no more",
    },
    "api": {
        "/v2/status": "tells that the process runs, and no more",
        "/healthz": "tells that the process runs, and no more",
        "/spec/spec.yaml": "documentation",
        "/docs/": "documentation",
    },
    "realtime": {
        "/v2/status": "tells that the process runs, and no more",
        "/healthz": "tells that the process runs, and no more",
    },
}
"""Paths of the services that nothing here calls, and why."""

NOT_GET = (
    "GET with the question in the address: the same answers, but what is asked for ends up in logs, is cut at the "
    "length of an address, and a body would be ignored"
)


def endpoints(table: Mapping[str, Resource] = RESOURCES) -> Iterator[Endpoint]:
    """Yield every method of every path that the package calls."""
    for name, row in table.items():
        client = f"wme.{name}" + "".join(ARGUMENTS.get(placeholder, "") for placeholder in row.placeholders)
        if "call" in row.verbs:
            call = CALLS[name]
            yield Endpoint(row.role, "POST", row.path, call if " " in call else f"wme.{call}", row)
        if "lookup" in row.verbs:
            yield Endpoint(row.role, "POST", row.path, f"{client}.lookup(name), .lookup_many(names)", row)
        if "stream" in row.verbs:
            yield Endpoint(row.role, "POST", row.path, f"{client}()", row)
        if "list" in row.verbs:
            yield Endpoint(row.role, "POST", row.path, f"{client}.list()", row)
        if "get" in row.verbs:
            many = ", .get_many(ids)" if "list" not in row.verbs and name != "files" else ""
            yield Endpoint(row.role, "POST", f"{row.path}/{{id}}", f"{client}.get(id){many}", row)
        if "head" in row.verbs:
            yield Endpoint(row.role, "HEAD", f"{row.path}/{{id}}/download", f"{client}.head(id)", row)
        if "download" in row.verbs:
            read = ", .read(id)" if "read" in row.verbs else ""
            yield Endpoint(row.role, "GET", f"{row.path}/{{id}}/download", f"{client}.download(id){read}", row)


def notes(endpoint: Endpoint) -> str:
    """Return the remarks on an endpoint in words."""
    row = endpoint.resource
    words = []
    if row.pool and (endpoint.method == "GET" or "lookup" in row.verbs or "list" not in row.verbs):
        words.append(f"metered: {row.pool}")
    if row.beta:
        words.append("beta")
    if row.guess:
        words.append("the path is by analogy")
    if row.undocumented:
        words.append("not in the reference")
    return ", ".join(words)


def render() -> str:
    """Return the whole page."""
    lines = [
        "# Endpoints",
        "",
        "Every endpoint of the services, and the call that asks it. This page is made from the table that the package",
        "goes by. A path that has moved can be replaced without touching code:",
        '`Client(paths={"wikidata.batches": "/v2/…/{hour}"})`.',
        "",
        "`{hour}` stands for a day and an hour, such as `2025-07-16/05`. Plans: *any* account, the *free* one and",
        "those above it, *paid* ones.",
        "",
    ]
    for role, host in HOSTS.items():
        lines += [f"## {host}", "", "| endpoint | call | plan | |", "|---|---|---|---|"]
        for endpoint in endpoints():
            if endpoint.role == role:
                call = endpoint.call if " of " in f" {endpoint.call}" else f"`{endpoint.call}`"
                tier = endpoint.resource.tier
                lines.append(f"| {endpoint.method} `{endpoint.path}` | {call} | {tier} | {notes(endpoint)} |")
        lines += ["", "Left out:", ""]
        reasons: dict[str, list[str]] = {}
        for path, reason in LEFT_OUT[role].items():
            reasons.setdefault(reason, []).append(f"`{path}`")
        lines += [f"- {', '.join(paths)}: {reason}." for reason, paths in reasons.items()]
        if role == "api":
            lines.append(f"- {NOT_GET}.")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv:
        return int(TARGET.read_text("utf-8") != render())
    TARGET.write_text(render(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
