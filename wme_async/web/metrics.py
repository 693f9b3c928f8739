"""Figures in Prometheus' text form."""

from collections.abc import Mapping

__all__ = ["metrics_text"]

_STATES = ("queued", "running", "paused", "completed", "failed", "cancelled")


def metrics_text(
    counts: Mapping[str, Mapping[str, int]],
    facts: Mapping[str, float],
    answered: Mapping[tuple[str, str, int], int],
) -> str:
    """Return the figures of a service.

    Args:
        counts: `batches`, `jobs` and `outbox` by state.
        facts: What happens now, as `BatchManager.statistics` says it.
        answered: Calls by method, name of the address, and status.
    """
    lines: list[str] = []

    def family(name: str, kind: str, words: str, rows: list[tuple[str, float]]) -> None:
        lines.append(f"# HELP {name} {words}")
        lines.append(f"# TYPE {name} {kind}")
        # To the last digit: a counter that is rounded stands still, and then leaps.
        lines.extend(f"{name}{labels} {value:.17g}" for labels, value in rows)

    for table, name in (("batches", "wme_batches"), ("jobs", "wme_jobs")):
        rows = [(f'{{state="{state}"}}', float(counts[table].get(state, 0))) for state in _STATES]
        family(name, "gauge", f"Number of {table} by state.", rows)
    states = ("waiting", "delivered", "given up")
    rows = [(f'{{state="{state}"}}', float(counts["outbox"].get(state, 0))) for state in states]
    family("wme_webhooks", "gauge", "Number of webhooks by state.", rows)
    family("wme_watchers", "gauge", "Streams of events that are open.", [("", facts["watchers"])])
    family("wme_download_rate_bytes", "gauge", "Bytes per second that arrive now.", [("", facts["rate"])])
    family("wme_download_bytes_total", "counter", "Bytes that arrived since the start.", [("", facts["bytes"])])
    rows = [
        (f'{{method="{method}",address="{name}",status="{status}"}}', float(count))
        for (method, name, status), count in sorted(answered.items())
    ]
    family("wme_http_requests_total", "counter", "Calls that were answered.", rows)
    return "\n".join(lines) + "\n"
