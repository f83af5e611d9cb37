"""The OpenAPI document and the page to try it, which needs nothing from the internet."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from pydantic.json_schema import models_json_schema

from server.http.models import (
    Failure,
    Health,
    HTTPValidationError,
    ImageGenerationRequest,
    Poll,
    Submitted,
)

_REFERENCE = "#/components/schemas/{model}"
_DESCRIPTION = """Pictures from prompts, by the JSON routes of an API that many clients already speak.
The same service answers over gRPC (`mediagen.v1.ImageService`), with step progress and streams; both draw the same
pictures.

Every error but 422 is `{"message", "reason"}`; 422 names all that is wrong at once, of very much the first
hundred. `x-request-id` is taken from the request or made, and sent back. `Authorization` is accepted and not looked
at."""

_RETRY = {"retry-after": {"description": "Seconds until trying again makes sense.", "schema": {"type": "integer"}}}
_FAILURES: dict[int, str] = {
    400: "A prompt filter blocks the prompt, or the request is not as HTTP has it.",
    404: "This deployment has no such engine.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    429: "As busy as it may be.",
    500: "A bug in the service.",
    501: "Not built in this version.",
    503: "The engines are away, the service stops, or too many connections are open.",
    504: "The engine took too long.",
}


def _failure(status: int) -> dict[str, Any]:
    headers = {"headers": _RETRY} if status in (429, 503) else {}
    return {"model": Failure, "description": _FAILURES[status], **headers}


_OF_ASSETS: dict[int, str] = {
    400: "The bytes are not those that were described.",
    403: "The asset is another's.",
    404: "No such asset, or none that the caller may use.",
    408: "The bytes stopped coming; go on from `received_bytes`.",
    409: "The name is taken, or the asset's state is not one for this.",
    411: "Nobody has said how long the file is.",
    416: "The bytes would not follow those that are here; go on from `received_bytes`.",
    429: "As many uploads are under way as may be; retry later.",
    507: "No room on the disk, or in what assets may take of it.",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Of a route of the asset library, beside those that every route has."""
    told: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": _OF_ASSETS[status]} for status in statuses
    }
    wrong = {"model": HTTPValidationError, "description": "Everything that is wrong with the body, query or headers."}
    return {422: wrong, 500: _failure(500), **told}


RESPONSES: dict[int | str, dict[str, Any]] = {
    202: {"model": Submitted, "description": "With `X-OctoAI-Async: 1`: taken; ask `poll_url` how it is."},
    422: {"model": HTTPValidationError, "description": "Everything that is wrong with the body."},
    **{status: _failure(status) for status in _FAILURES},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {
        "model": Failure,
        "description": "No such request: never made, deleted, or answered too long or too many answers ago.",
    }
}
FETCHED: dict[int | str, dict[str, Any]] = {
    **RESPONSES,
    202: {"model": Poll, "description": "Not finished yet."},
    404: UNKNOWN[404],
}
HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": Health, "description": "The engines answer."},
    503: {"model": Health, "description": "They do not, or the service is about to stop."},
}
REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": _REFERENCE.format(model="ImageGenerationRequest")},
                "examples": {
                    "smallest": {"value": {"prompt": "a red house and a sailboat at sunset"}},
                    "more": {
                        "value": {
                            "prompt": "a (red:1.3) house and a sailboat at sunset",
                            "negative_prompt": "people",
                            "steps": 20,
                            "cfg_scale": 7.5,
                            "seed": [7, None],
                            "num_images": 2,
                            "image_encoding": "png",
                        }
                    },
                },
            }
        },
    },
    "parameters": [
        {
            "name": "X-OctoAI-Async",
            "in": "header",
            "required": False,
            "description": "`1`: answer 202 at once, with a URL to ask for the pictures.",
            "schema": {"type": "string"},
        },
        {
            "name": "x-request-id",
            "in": "header",
            "required": False,
            "description": "The caller's name for this request, in the log and the reply: 1 to 128 printable ASCII "
            "characters; anything else is replaced.",
            "schema": {"type": "string"},
        },
    ],
}


def document(app: FastAPI) -> dict[str, Any]:
    """Of the routes that the application has."""
    made = get_openapi(title="mediagen", version="1", description=_DESCRIPTION, routes=app.routes)
    _, schemas = models_json_schema([(ImageGenerationRequest, "validation")], ref_template=_REFERENCE)
    made["components"]["schemas"] |= schemas["$defs"]
    return made


async def page() -> HTMLResponse:
    """Swagger UI over the document."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="mediagen",
        swagger_js_url="docs/swagger-ui-bundle.js",
        swagger_css_url="docs/swagger-ui.css",
        swagger_favicon_url="data:,",
        swagger_ui_parameters={"validatorUrl": None},
    )


def assets() -> Path:
    """Where that page's files lie: in a package that is installed for nothing else."""
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise RuntimeError("fastapi-offline is not installed: pip install -e '.[serve]'")
    return Path(found.origin).parent / "static"
