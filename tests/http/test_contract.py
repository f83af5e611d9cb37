"""The document we serve takes whatever the old one allows, and our replies are what the old one promises.

`old_api.json` has the schemas of the old API's seven routes, without its texts; all seven share one request and one
reply.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_service import Hollow, Served
from jsonschema import Draft202012Validator
from PIL import Image

from server.catalog import Catalog
from server.fields import DEFAULTS
from server.http.app import ROUTES
from server.http.body import NotJson
from server.http.models import ImageGenerationRequest
from server.http.translate import NO_DEMANDS, translate
from server.request import plan
from server.samplers import SAMPLERS
from server.violations import InvalidRequest


def picture() -> str:
    """White, in base64: as a mask it paints everything."""
    file = io.BytesIO()
    Image.new("L", (64, 64), 255).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = picture()
OLD = json.loads((Path(__file__).parent / "old_api.json").read_text())
OLD_REQUEST = OLD["components"]["schemas"]["ImageGenerationRequest"]
# What may be wrong with a value that the old schema allows: more than JSON can say, or nobody's number.
OF_VALUES = {"value_error", "base64", "number_range", "finite_number", "missing", "too_long"}

BEYOND = {"minimum": -1, "maximum": 1, "exclusiveMinimum": 0}  # how far the first value is that is not allowed
WITHIN = {"minimum": 0, "maximum": 0, "exclusiveMinimum": 1e-9}  # and the last that is
LATER = {"controlnet_conditioning_scale", "controlnet_early_stop", "ip_adapter_scale"}  # as the old document has them
NEEDED = {"init_image": PICTURE, "mask_image": PICTURE, "inpaint_full_res": True}


def quick(examples: int) -> settings:
    """So many examples, the same ones every time."""
    return settings(max_examples=examples, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


def whole(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """A schema that finds what it refers to."""
    return {**schema, "components": {"schemas": document["components"]["schemas"]}}


def bodies(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of a schema of the old document."""
    operation = {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {"200": {"description": "pictures"}},
    }
    document = {"openapi": "3.1.0", "info": {"title": "old", "version": "1"}, "paths": {"/": {"post": operation}}}
    found = schemathesis.openapi.from_dict({**document, "components": OLD["components"]})
    return found["/"]["POST"].as_strategy().map(lambda case: case.body)


@pytest.fixture(scope="module")
def ours(hollow_service: Hollow) -> dict[str, Any]:
    """The document as it is served."""
    found: dict[str, Any] = httpx.get(f"{hollow_service.url}/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def allowed(ours: dict[str, Any]) -> Draft202012Validator:
    """Of our requests."""
    return Draft202012Validator(whole(ours["components"]["schemas"]["ImageGenerationRequest"], ours))


def kinds(body: object) -> set[str]:
    """The kinds of what is wrong with a body's form."""
    try:
        return {wrong.kind for wrong in translate(json.dumps(body).encode(), "sdxl", NO_DEMANDS).wrongs}
    except NotJson as error:
        return {error.wrong.kind}


async def test_the_seven_routes_are_in_the_document_with_one_request_schema(served: Served) -> None:
    paths = (await served.http.get("/openapi.json")).json()["paths"]
    assert sorted(path for path in paths if path.startswith("/generate/")) == OLD["paths"]
    for route in ROUTES:
        content = paths[route.path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": "#/components/schemas/ImageGenerationRequest"}
        assert {"200", "202", "400", "404", "413", "415", "422", "429", "500", "503", "504"} <= (
            paths[route.path]["post"]["responses"].keys()
        )


def test_where_a_wrong_style_is_sent_to_look_all_of_them_stand(ours: dict[str, Any], catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match=r"openapi\.json name all 78"):
        plan(translate(b'{"prompt": "x", "style_preset": "qqqq"}', "sdxl", NO_DEMANDS).message, catalog)
    style = ours["components"]["schemas"]["ImageGenerationRequest"]["properties"]["style_preset"]
    assert len(next(kind["enum"] for kind in style["anyOf"] if "enum" in kind)) == 78


def test_the_examples_of_the_document_fit_it(ours: dict[str, Any], allowed: Draft202012Validator) -> None:
    properties = ours["components"]["schemas"]["ImageGenerationRequest"]["properties"]
    examples = [{"prompt": "x", key: value} for key, facts in properties.items() for value in facts.get("examples", ())]
    more = ours["paths"]["/generate/sd"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    for body in (*examples, *(example["value"] for example in more.values())):
        assert allowed.is_valid(body), body
        assert not kinds(body), body


@pytest.mark.parametrize("key", OLD_REQUEST["properties"])
def test_every_value_that_a_key_of_the_old_document_allows_is_allowed_and_read(
    key: str, allowed: Draft202012Validator
) -> None:
    only = {"type": "object", "properties": {key: OLD_REQUEST["properties"][key]}, "required": [key]}

    @quick(30)
    @given(bodies({**only, "additionalProperties": False}))
    def check(found: dict[str, Any]) -> None:
        assert found.keys() == {key}
        assert not list(allowed.iter_errors({"prompt": "x"} | found))
        assert kinds({"prompt": "x"} | found) <= OF_VALUES

    check()


def test_every_request_that_the_old_document_allows_is_allowed_and_read(allowed: Draft202012Validator) -> None:
    @quick(100)
    @given(bodies({"$ref": "#/components/schemas/ImageGenerationRequest"}))
    def check(body: dict[str, Any]) -> None:
        assert not list(allowed.iter_errors(body))
        assert kinds(body) <= OF_VALUES

    check()


def test_what_the_old_document_forbids_as_unknown_is_unknown_here_but_for_a_later_field() -> None:
    later = {"log_prompt", "inpaint_full_res", "inpaint_full_res_padding", "ip_adapter"}
    assert set(ImageGenerationRequest.model_fields) == set(OLD_REQUEST["properties"]) | later
    assert kinds({"prompt": "x", "svd": 1}) == {"extra_forbidden"}


def refused(key: str, value: object, catalog: Catalog) -> dict[str, str]:
    """What the plan says of a value, beside which there is all that it may need."""
    body = {"prompt": "x", "seed": 7} | NEEDED | {key: value}
    translated = translate(json.dumps(body).encode(), "sdxl", NO_DEMANDS)
    assert not translated.wrongs
    try:
        plan(translated.message, catalog)
    except InvalidRequest as error:
        return {violation.field: violation.description for violation in error.violations}
    return {}


BOUNDED = {
    "prompt",
    "prompt_2",
    "negative_prompt",
    "negative_prompt_2",
    "cfg_scale",
    "steps",
    "num_images",
    "strength",
    "inpaint_full_res_padding",
    "clip_skip",
    "high_noise_frac",
}


@pytest.mark.parametrize("key", sorted(BOUNDED))
def test_a_bound_that_the_document_states_is_the_plans(key: str, ours: dict[str, Any], catalog: Catalog) -> None:
    facts = ours["components"]["schemas"]["ImageGenerationRequest"]["properties"][key]
    bounds = {name: facts[name] for name in BEYOND if name in facts}
    for name, bound in bounds.items():
        told = refused(key, bound + BEYOND[name], catalog)
        assert told.keys() == {key}
        assert f"{bound:g}" in told[key].partition(" ")[2]  # after what was given
        assert not refused(key, bound + WITHIN[name], catalog)
    if "maxLength" in facts:
        assert f"{facts['maxLength']:,}" in refused(key, "x" * (facts["maxLength"] + 1), catalog)[key]
        assert not refused(key, "x" * facts["maxLength"], catalog)
    assert bounds or "maxLength" in facts


def test_no_other_bound_is_stated_but_for_what_comes_later(ours: dict[str, Any]) -> None:
    properties = ours["components"]["schemas"]["ImageGenerationRequest"]["properties"]
    stated = {key for key, facts in properties.items() if {*BEYOND, "maxLength"} & facts.keys()}
    assert stated == BOUNDED | LATER
    assert "0 to 100" in properties["controlnet_conditioning_scale"]["description"]  # the old document has no maximum


def test_the_defaults_of_the_document_are_the_plans(ours: dict[str, Any]) -> None:
    properties = ours["components"]["schemas"]["ImageGenerationRequest"]["properties"]
    stated = {key: facts["default"] for key, facts in properties.items() if facts.get("default") is not None}
    assert {key: stated[key] for key in DEFAULTS} == DEFAULTS
    assert stated["sampler"] == next(iter(SAMPLERS))


async def test_replies_are_what_the_old_document_promises(served: Served) -> None:
    body = {"prompt": "x", "steps": 1, "width": 384, "height": 704, "num_images": 2}
    for reply, schema in (
        (await served.http.post("/generate/sd", json=body), "ImageGenerationResponse"),
        (await served.http.post("/generate/sd", json=body | {"steps": 0, "seed": ["x"]}), "HTTPValidationError"),
        (await served.http.post("/generate/sd", content=b"{", headers={"content-type": "application/json"}), ""),
    ):
        assert reply.status_code == (200 if schema == "ImageGenerationResponse" else 422)
        promised = OLD["components"]["schemas"][schema or "HTTPValidationError"]
        Draft202012Validator(whole(promised, OLD)).validate(reply.json())


async def test_replies_are_what_our_document_promises(served: Served, ours: dict[str, Any]) -> None:
    body = {"prompt": "x", "steps": 1, "width": 384, "height": 704}
    promised = ours["components"]["schemas"]
    later = {"X-OctoAI-Async": "1"}
    submitted = await served.http.post("/generate/sd", json=body, headers=later)
    for reply, schema in (
        (await served.http.post("/generate/sd", json=body), "ImageGenerationResponse"),
        (await served.http.post("/generate/sd", json={}), "HTTPValidationError"),
        (await served.http.post("/generate/sdxl", json=body), "Failure"),
        (submitted, "Submitted"),
        (await served.http.get(submitted.json()["poll_url"]), "Poll"),
        (await served.http.get("/healthz"), "Health"),
    ):
        Draft202012Validator(whole(promised[schema], ours)).validate(reply.json())
