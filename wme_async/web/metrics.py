"""Metrics in Prometheus' text format."""

from collections.abc import Mapping

from wme_async.jobs import Status


def metrics_text(
    counts: Mapping[str, Mapping[str, int]],
    statistics: Mapping[str, float],
    responses: Mapping[tuple[str, str, int], int],
) -> str:
    """Return the metrics of a service.

    Args:
        counts: `batches`, `jobs` and `outbox` by state.
        statistics: The values of `BatchManager.statistics`.
        responses: Responses by method, name of the route, and status.
    """
    lines: list[str] = []

    def family(name: str, kind: str, description: str, rows: Mapping[str, float]) -> None:
        lines.append(f"# HELP {name} {description}")
        lines.append(f"# TYPE {name} {kind}")
        # To the last digit: a rounded counter stands still, and then leaps.
        lines.extend(f"{name}{labels} {value:.17g}" for labels, value in rows.items())

    def by_state(table: str, name: str, states: tuple[str, ...], noun: str) -> None:
        rows = {f'{{state="{state}"}}': counts[table].get(state, 0) for state in states}
        family(name, "gauge", f"Number of {noun} by state.", rows)

    by_state("batches", "wme_batches", tuple(Status), "batches")
    by_state("jobs", "wme_jobs", tuple(Status), "jobs")
    by_state("outbox", "wme_webhooks", ("waiting", "delivered", "given up"), "webhooks")
    family("wme_watchers", "gauge", "Open streams of events.", {"": statistics["watchers"]})
    family("wme_download_rate_bytes", "gauge", "Bytes per second at the moment.", {"": statistics["rate"]})
    family("wme_download_bytes_total", "counter", "Bytes received since the start.", {"": statistics["bytes"]})
    rows = {
        f'{{method="{method}",address="{name}",status="{status}"}}': count
        for (method, name, status), count in sorted(responses.items())
    }
    family("wme_http_requests_total", "counter", "Requests that got a response.", rows)
    return "\n".join(lines) + "\n"
