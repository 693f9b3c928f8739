"""The page: one file of HTML without anything from elsewhere, and the policy that keeps it so."""

import base64
import functools
import hashlib
import re
from importlib.resources import files

from wme_async.web.messages import Reply

__all__ = ["page_reply"]


@functools.cache
def page_reply() -> Reply:
    """Return the page. Only its own script and style run in it, named by their hashes."""
    text = files("wme_async.web").joinpath("page.html").read_text(encoding="utf-8")
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Reply(
        headers={
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
            "Cache-Control": "no-cache",
        },
        body=text.encode(),
    )


def _hash(text: str, tag: str) -> str:
    [content] = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
