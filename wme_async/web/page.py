"""The page: one file of HTML that loads nothing else, and the policy that enforces it."""

import base64
import functools
import hashlib
import re
from importlib.resources import files

from wme_async.web.messages import Response


@functools.cache
def page_response(*, keys: bool) -> Response:
    """Return the page. Its policy names its one script and one style by their hashes.

    Args:
        keys: Whether requests need an API key, for which the page then asks before its first one.
    """
    text = files("wme_async.web").joinpath("page.html").read_text(encoding="utf-8")
    if keys:
        text = text.replace('data-key="optional"', 'data-key="required"', 1)
    script, style = (_hash(text, tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:;"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Response(
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
