"""The description of the interface at /openapi.json: every error in it is a problem, as in the answers."""

from typing import Any, Final

from fastapi import FastAPI

from retrieval.answer import Problem
from service.problems import MEDIA_TYPE

_REFERENCE: Final = "#/components/schemas/{model}"
# Whatever is called, a client may be too slow or send what is not HTTP, and the server may have a fault.
_EVERYWHERE: Final = {"400": "Malformed request", "500": "A fault of the server's; its log says which"}
_FASTAPIS_OWN: Final = ("HTTPValidationError", "ValidationError")


def describe_problems(app: FastAPI) -> None:
    """Have the app's description say of each error that it is a `Problem`, in place of FastAPI's own errors."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        fresh = app.openapi_schema is None
        described = describe()
        if fresh:
            _say_problem(described)
        return described

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI's documentation does


def _say_problem(described: dict[str, Any]) -> None:
    schemas = described.setdefault("components", {}).setdefault("schemas", {})
    schemas.setdefault("Problem", Problem.model_json_schema(ref_template=_REFERENCE))
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    for operations in described["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            for status, text in _EVERYWHERE.items():
                responses.setdefault(status, {"description": text})
            for status, response in responses.items():
                if status.startswith(("4", "5")) and not _has_its_own(response):
                    response["content"] = content


def _has_its_own(response: dict[str, Any]) -> bool:
    """Such as /readyz, which says in its own words why it answers 503."""
    reference: str = response.get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    return bool(reference) and reference.rpartition("/")[2] not in ("Problem", *_FASTAPIS_OWN)
