"""Generated requests, good and bad, over both interfaces: the service refuses what it cannot do and never fails."""

import base64
import io
import json
import sys
from collections import Counter
from typing import Any

import grpc
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from json_service import Hollow
from mediagen.v1 import image_pb2 as pb
from mediagen.v1 import image_pb2_grpc
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from server.http.app import ROUTES
from server.http.models import ImageGenerationRequest

QUICK, ALL = 300, 5000  # examples on each interface
ENGINES = ("sd15", "sdxl", "ssd", "sd3")


def generated(examples: int) -> settings:
    """Random ones, the same every time; a failure is not made smaller, since each takes a call."""
    phases = (Phase.explicit, Phase.generate)
    return settings(
        max_examples=examples, derandomize=True, deadline=None, phases=phases, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(scope="module")
def api(hollow_service: Hollow) -> schemathesis.BaseSchema:
    """What we serve, by its own document."""
    return schemathesis.openapi.from_url(f"{hollow_service.url}/openapi.json")


OPERATIONS = (
    *(("POST", route.path) for route in ROUTES),
    *(("GET", "/v1/requests/{response_id}"), ("GET", "/v1/requests/{response_id}/response"), ("GET", "/healthz")),
    ("DELETE", "/v1/requests/{response_id}"),
    *(("GET", "/v1/assets"), ("POST", "/v1/assets"), ("GET", "/v1/assets/{asset}"), ("DELETE", "/v1/assets/{asset}")),
    *(("PUT", "/v1/assets/{asset}/content"), ("POST", "/v1/assets/{asset}/complete-upload")),
)


def test_every_operation_of_the_document_is_tried_here(api: schemathesis.BaseSchema) -> None:
    found = {(result.ok().method.upper(), result.ok().path) for result in api.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((*operation, GenerationMode.POSITIVE) for operation in OPERATIONS),
        *(("POST", route.path, GenerationMode.NEGATIVE) for route in ROUTES),  # the others take anything
        *(("GET", "/v1/assets", GenerationMode.NEGATIVE), ("POST", "/v1/assets", GenerationMode.NEGATIVE)),
    ],
)
def test_the_service_does_what_its_document_says(
    api: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    @generated(20)
    @given(api[path][method].as_strategy(generation_mode=mode))
    def call(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict):
            small(case.body)
        # what fits the document may still be refused: for its size, its pictures, what this version does not do
        case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

    call()


def small(body: dict[str, Any]) -> None:
    """What is valid is drawn in few steps; what is not stays."""
    for key, most in (("steps", 2), ("num_images", 2)):
        if isinstance(body.get(key), int | float) and 1 <= body[key] <= 200:
            body[key] = min(body[key], most)
    body.setdefault("steps", 1)


def pictures() -> list[bytes]:
    """Good ones, cut ones, and what is none."""
    files = []
    for kind, mode in (("PNG", "RGBA"), ("JPEG", "L"), ("WEBP", "RGB"), ("GIF", "P")):
        file = io.BytesIO()
        Image.new(mode, (40, 30)).save(file, kind)
        files += [file.getvalue(), file.getvalue()[:-20], file.getvalue()[:15]]
    return [*files, b"", b"\0" * 100]


def seldom(strategy: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Once in four."""
    return st.integers(0, 3).flatmap(lambda dice: strategy if dice == 0 else usual)


def one_of(*good: Any) -> st.SearchStrategy[Any]:
    """One of these."""
    return st.sampled_from(good)


# By key: what may be valid, and what is beside it. Valid ones are cheap to draw.
PICTURES = st.sampled_from(pictures())
TEXTS = seldom(
    st.text(max_size=30) | st.sampled_from(["(" * 200, "x " * 400, "gun", ""]),
    one_of("a red house", "(a:1.5) \\( ((b))"),
)
WHOLE = seldom(
    st.sampled_from([0, -1, 13, 32, 201, 2**31 - 1, -(2**31)]) | st.integers(-(2**31), 2**31 - 1), one_of(1, 2, 12, 32)
)
REAL = seldom(st.sampled_from([0.0, -1.0, 51.0, 1e308, 5e-324]) | st.floats(), one_of(0.5, 0.8, 1.0))
SIDES = seldom(st.sampled_from([0, -1, 513, 2**31 - 1]), one_of(384, 512, 704, 640, 1024, 1536))
FEW = seldom(st.sampled_from([0, -1, 201, 2**31 - 1]), one_of(1, 1, 2))
# What a fault repeats has to find room in gRPC's trailers.
LONG = one_of("x" * 300, "\xe9" * 3000, "\n" * 2000, "%" * 5000, "\U0001f600" * 1000)
NAMES = st.dictionaries(st.text(max_size=5) | LONG, REAL, max_size=3)

SCALARS: dict[int, st.SearchStrategy[Any]] = {
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["prompt"].type: TEXTS,
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["steps"].type: WHOLE,
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["seed"].type: seldom(
        st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1)
    ),
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["cfg_scale"].type: REAL,
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["outpainting"].type: st.booleans(),
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["init_image"].type: PICTURES,
    pb.GenerateRequest.DESCRIPTOR.fields_by_name["sampler"].type: st.integers(0, 21) | st.sampled_from([-1, 99]),
}
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "steps": FEW,
    "num_images": FEW,
    "width": SIDES,
    "height": SIDES,
    "seeds": seldom(
        st.lists(st.integers(-1, 2**33), max_size=100).map(lambda seeds: [pb.Seed(value=seed) for seed in seeds]),
        st.lists(st.builds(pb.Seed, value=st.none() | st.integers(-1, 2**33)), max_size=3),
    ),
    "style_preset": seldom(TEXTS | LONG, one_of("Watercolor", "base", "")),
    "loras": NAMES,
    "textual_inversions": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
    "transfer_images": st.dictionaries(
        st.text(max_size=5), st.builds(pb.TransferImages, images=st.lists(PICTURES, max_size=5)), max_size=2
    ),
}
MESSAGES = st.fixed_dictionaries(
    {
        "engine": seldom(st.sampled_from(ENGINES) | TEXTS | LONG, st.sampled_from(ENGINES)),
        "prompt": TEXTS,
        "steps": FEW,
    },
    optional={
        field.name: OTHERS[field.name] if field.name in OTHERS else SCALARS[field.type]
        for field in pb.GenerateRequest.DESCRIPTOR.fields
        if field.name not in ("engine", "prompt", "steps")
    },
)


def kept(fields: dict[str, Any], keys: list[int]) -> dict[str, Any]:
    """The required ones and few others: one that has all is always refused."""
    chosen = [name for position, name in enumerate(fields) if position < 3 or position in keys]
    return {name: fields[name] for name in chosen}


REQUESTS = st.builds(kept, MESSAGES, st.lists(st.integers(3, 25), max_size=4))
KEYS = st.text(max_size=5) | one_of("[key]", "list", "engine")  # some are names of the parser's, of the proto's
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)


def as_json(fields: dict[str, Any], junk: dict[str, Any]) -> dict[str, Any]:
    """The same request in the words of the old API; some values are of no kind at all."""
    body = {}
    for name, value in fields.items():
        field = pb.GenerateRequest.DESCRIPTOR.fields_by_name[name]
        if name == "transfer_images":
            body[name] = {key: [base64.b64encode(i).decode() for i in images.images] for key, images in value.items()}
        elif name == "seeds":
            body["seed"] = [seed.value if seed.HasField("value") else None for seed in value]
        elif isinstance(value, bytes):
            body[name] = base64.b64encode(value).decode()
        elif field.enum_type is not None and value in field.enum_type.values_by_number:
            body[name] = field.enum_type.values_by_number[value].name.split("_", 1)[-1].lower()
            if name == "sampler":
                body[name] = body[name].upper()
        elif name != "engine":
            body[name] = value
    return body | junk


OURS = st.sampled_from([*ImageGenerationRequest.model_fields])
BODIES = st.builds(as_json, REQUESTS, seldom(st.dictionaries(OURS | KEYS, JUNK, min_size=1, max_size=2), st.just({})))
CHANGES = seldom(st.tuples(st.integers(0, 200), st.integers(0, 200), st.binary(max_size=4)), st.none())
PATHS = st.sampled_from([route.path for route in ROUTES] + ["/generate/sd", "/generate/sdxl", "/generate/sd3"] * 4)


def over_grpc(service: Hollow, examples: int) -> Counter[str]:
    """How the calls ended."""
    ends: Counter[str] = Counter()
    with grpc.insecure_channel(service.grpc_address) as channel:
        generate = image_pb2_grpc.ImageServiceStub(channel).Generate

        @generated(examples)
        @given(REQUESTS)
        def call(fields: dict[str, Any]) -> None:
            request = pb.GenerateRequest(**fields)
            end = generate.future(request, timeout=60)
            code = end.code()
            ends[code.name] += 1
            refused = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)
            assert code in refused, f"{end.details()}: {request}"

        call()
    return ends


def over_http(service: Hollow, examples: int) -> Counter[int]:
    """Likewise; some bodies have bytes that do not belong there."""
    ends: Counter[int] = Counter()
    with httpx.Client(base_url=service.url, timeout=60, headers={"content-type": "application/json"}) as client:

        @generated(examples)
        @given(PATHS, BODIES, CHANGES)
        def call(path: str, body: dict[str, Any], change: tuple[int, int, bytes] | None) -> None:
            content = json.dumps(body).encode()
            if change is not None:
                begin, length, other = change
                content = content[:begin] + other + content[begin + length :]
            reply = client.post(path, content=content)
            ends[reply.status_code] += 1
            assert reply.status_code in (200, 400, 422), f"{reply.text}: {content!r}"

        call()
    return ends


def test_no_generated_message_makes_the_service_fail(hollow_service: Hollow) -> None:
    ends = over_grpc(hollow_service, QUICK)
    assert ends["OK"] > QUICK / 20, ends
    assert ends["INVALID_ARGUMENT"] > QUICK / 4


def test_no_generated_body_makes_the_service_fail(hollow_service: Hollow) -> None:
    ends = over_http(hollow_service, QUICK)
    assert ends[200] > QUICK / 100, ends  # chance decides; without any the test would say nothing
    assert ends[422] > QUICK / 4


ASSETS = one_of("x", "y")
SAID = st.fixed_dictionaries(
    {"name": ASSETS, "asset_type": seldom(JUNK, one_of("lora", "vae", "controlnet"))},
    optional={
        "size_bytes": seldom(JUNK | WHOLE, st.integers(1, 12)),
        "is_public": seldom(JUNK, st.booleans()),
        "description": seldom(JUNK, TEXTS),
        "preprocessor": seldom(JUNK, one_of("canny", "mine")),
        "sha256": seldom(JUNK, one_of("0" * 64, None)),
    },
)
PARTS = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 12)).map(lambda n: "bytes {}-{}/{}".format(*n))
RANGES = seldom(st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=20), st.none() | PARTS)
CALLS = st.one_of(
    st.tuples(st.just("POST"), st.just(""), SAID),
    st.tuples(st.just("PUT"), ASSETS, st.tuples(st.binary(max_size=12), RANGES)),
    st.tuples(one_of("GET", "DELETE"), ASSETS, st.none()),
    st.tuples(st.just("POST"), ASSETS, seldom(JUNK, one_of({}, {"skip_validation": False}))),
)


def test_no_generated_way_through_the_library_makes_the_service_fail(hollow_service: Hollow) -> None:
    ends: Counter[int] = Counter()
    with httpx.Client(base_url=hollow_service.url, timeout=60) as client:
        ids = {"x": "x", "y": "y"}

        @generated(80)
        @given(st.lists(CALLS, min_size=3, max_size=6))
        def calls(steps: list[tuple[str, str, Any]]) -> None:
            for method, name, what in steps:
                path = f"/v1/assets/{name}" if name else "/v1/assets"
                if method == "PUT":
                    headers = {} if what[1] is None else {"content-range": what[1].strip()}
                    reply = client.put(f"/v1/assets/{ids[name]}/content", content=what[0], headers=headers)
                elif method == "POST":
                    content, headers = json.dumps(what).encode(), {"content-type": "application/json"}
                    path = f"{path}/complete-upload" if name else path
                    reply = client.post(path, content=content, headers=headers)
                    if reply.status_code == 201:
                        ids[what["name"]] = reply.json()["asset"]["id"]
                else:
                    reply = client.request(method, path)
                ends[reply.status_code] += 1
                assert reply.status_code in (*range(200, 500), 507), f"{reply.text}: {method} {path} {what!r}"

        calls()
    assert min(ends[200], ends[201], ends[409]) > 10, ends


@pytest.mark.thorough
def test_ten_thousand_generated_requests_over_both_interfaces_make_no_failure(hollow_service: Hollow) -> None:
    messages, bodies = over_grpc(hollow_service, ALL), over_http(hollow_service, ALL)
    sys.stdout.write(f"gRPC {dict(messages)}, HTTP {dict(bodies)}\n")  # with pytest -s
    assert messages.total() == bodies.total() == ALL
