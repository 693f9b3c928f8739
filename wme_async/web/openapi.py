"""The OpenAPI document, generated from the routes and the types of their requests and responses."""

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from wme_async._version import __version__
from wme_async.web.messages import Problems
from wme_async.web.routes import Route

_DESCRIPTIONS: Final = {
    400: "The body is not JSON",
    401: "The API key is missing or unknown",
    403: "The request comes from a page of another site",
    404: "Nothing has this name",
    405: "The address does not take this method",
    409: "Not possible in this state",
    413: "The body is too large",
    415: "The content type of the body is not JSON",
    412: "The file is not the version of If-Match or If-Unmodified-Since",
    416: "The range is not in the file",
    421: "The service is not called by this name",
    422: "The request is not valid; details list all problems",
    429: "Too many new batches",
    500: "A fault of the service",
    502: "Wikimedia Enterprise did not answer as it should",
    503: "The service is being closed",
}


def openapi_document(routes: Sequence[Route], *, keys: bool) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document.

    Args:
        routes: All routes.
        keys: Whether requests need an API key.
    """
    types = [Problems]
    for route in routes:
        types += [kind for kind in (route.body, route.success[1]) if kind is not None and kind not in types]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    refs = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"{(\w+):path}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, refs, keys=keys)
    security = {"securitySchemes": {"key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}} if keys else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "wme_async batch downloads",
            "version": __version__,
            "description": "Many downloads as one job.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, **security},
    }


def _operation(route: Route, refs: dict[Any, Any], *, keys: bool) -> dict[str, Any]:
    status, kind = route.success
    schema = (
        refs[kind]
        if kind is not None
        else {"type": "object"}
        if route.media == "application/json"
        else {"type": "string"}
    )
    responses: dict[str, Any] = {
        str(status): {"description": route.summary, "content": {route.media: {"schema": schema}}}
    }
    if route.name == "file":
        responses["206"] = {"description": "A part of the file", "content": {route.media: {"schema": schema}}}
        responses["304"] = {"description": "The file is the one you have"}
    errors = {*route.errors, 421, 500, 503}
    if keys and not route.open:
        errors.add(401)
    if route.method != "GET":
        errors.add(403)
    problem = {"application/json": {"schema": refs[Problems]}}
    responses |= {str(code): {"description": _DESCRIPTIONS[code], "content": problem} for code in sorted(errors)}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [
            *(
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in re.findall(r"{(\w+)", route.path)
            ),
            *({"name": name, "in": "query", "required": False, "schema": schema} for name, schema in route.query),
        ],
        "responses": responses,
    }
    if route.body is not None:
        required = any(field.required for field in msgspec.structs.fields(route.body))
        content = {"application/json": {"schema": refs[route.body]}}
        operation["requestBody"] = {"required": required, "content": content}
    if keys:
        operation["security"] = [] if route.open else [{"key": []}]
    return operation
