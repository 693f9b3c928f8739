"""The records of the account."""

from wme_async.models._struct import Model

__all__ = ["Permission", "User"]


class Permission(Model):
    """A request that the account may make.

    Attributes:
        path: Path pattern, as the server's access policy spells it.
        method: HTTP method or a pattern of several.
    """

    path: str = ""
    method: str = ""


class User(Model):
    """The account: its permissions, and its usage this month.

    Only these counts show the usage: no response of the data services carries it. The limits are constants of the
    service and not the caps of this account, which may be higher.

    Attributes:
        username: Name of the account.
        groups: Groups it belongs to; they decide the plan.
        ondemand_requests_count: Look-ups this month: articles and structured contents together.
        ondemand_limit: The service's stated limit for them.
        snapshot_requests_count: Snapshot downloads this month: each request counts, also for a range.
        snapshot_limit: The service's stated limit for them.
        chunk_requests_count: Chunk downloads this month.
        chunk_limit: The service's stated limit for them.
        apis: The APIs that it may use.
    """

    username: str = ""
    groups: tuple[str, ...] = ()
    ondemand_requests_count: int = 0
    ondemand_limit: int = 0
    snapshot_requests_count: int = 0
    snapshot_limit: int = 0
    chunk_requests_count: int = 0
    chunk_limit: int = 0
    apis: tuple[Permission, ...] = ()
