"""A thousand names that nobody means well by, in every field that names an asset: told, and no file touched.

The shelf is a real library's, which has assets of names much like them.
"""

import random
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import grpc
import pytest
from assets.conftest import bring, looked_at
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from server.asked.shelf import Shelf
from server.assets.asset import AssetType
from server.assets.library import Library
from server.catalog import Catalog
from server.request import plan
from server.rpc.errors import fault_of, trailers
from server.violations import InvalidRequest

COUNT = 1000
SECONDS = 0.2  # of a processor, that none may take; they take 1 to 10 ms
METADATA_BYTES = 8192  # in all, that gRPC's clients take
NAMES = {
    "style": AssetType.LORA,
    "paper": AssetType.CHECKPOINT,
    "print": AssetType.VAE,
    "cat": AssetType.TEXTUAL_INVERSION,
    "edges": AssetType.CONTROLNET,
    "look": AssetType.IP_ADAPTER,
}
FORMS = (
    "../{0}", "../../{0}", "./{0}", "{0}/", "/{0}", "{0}/../{0}", "..\\{0}", "C:\\{0}", "\\\\host\\{0}", "~/{0}",
    "{0}.safetensors", "{0}.safetensors\0.png", "{0}\0", "\0{0}", "{0}\n", "\r\n{0}: x", "{0} ", " {0}", "{0}\t",
    "file:///etc/{0}", "http://127.0.0.1:1/{0}", "https://[::1]/{0}", "s3://bucket/{0}", "hf://owner/{0}", "data:,{0}",
    "%2e%2e%2f{0}", "..%c0%af{0}", "%00{0}", "{0}%", "{0}_", "{0}*", "?{0}", "[{0}]", "{0}' OR '1'='1", "{0}'; --",
    '{0}" UNION SELECT name FROM assets --', "{0}'||(SELECT 1)||'", "$({0})", "`{0}`", "; rm -rf {0}", "| {0}", "& {0}",
    "{{0}}", "{{{{{0}}}}}", "${{jndi:ldap://h/{0}}}", "%s%n{0}", "<script>{0}</script>", "&#46;{0}", "octoai:../{0}",
    "octoai:octoai:{0}", "{0}\u202e", "\ufeff{0}", "\u200b{0}", "{0}\u0301", "\uff0e\uff0e\uff0f{0}", "\U0001f4a5{0}",
    "blobs/ab/{0}", "assets.sqlite#{0}", "partial/{0}", "CON.{0}", "nul:{0}", "-{0}", "--{0}", "..{0}..", "{0}" * 40,
)  # fmt: skip


def hostile() -> list[str]:
    """Not one of them is a name that an asset has."""
    dice = random.Random(5)
    made = {form.format(name) for form in FORMS for name in NAMES}
    made |= {"." * count for count in range(1, 40)} | {"../" * count for count in range(1, 40)}
    made |= {"a" * 10**power for power in range(3, 6)} | {"\0" * 300, "\U0010ffff" * 300, "%s" * 500}
    letters = "./\\\0%'\"\n\x7f\x1b:;$`{}()[]<>|&*?~ \u00a0\u2028\u202e\ud7ff\ufffe\U0001f600abc"
    while len(made) < COUNT:
        made.add("".join(dice.choice(letters) for _ in range(dice.randrange(1, 160))))
    return sorted(made - NAMES.keys())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """With an asset of each type."""
    made = Library(tmp_path_factory.mktemp("hostile") / "assets", looked_at, 10_000)
    for name, type in NAMES.items():
        bring(made, name.encode(), name, type, public=True)
    yield made
    made.close()


def picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (8, 8), "grey").save(file, "PNG")
    return file.getvalue()


def asked(name: str) -> pb.GenerateRequest:
    """In every field that names an asset."""
    return pb.GenerateRequest(
        engine="sd15",
        prompt="a red house",
        checkpoint=name,
        vae=name,
        loras={name: 1.0},
        textual_inversions={name: "house"},
        controlnet=name,
        ip_adapter=name,
        controlnet_image=PICTURE,
        ip_adapter_image=PICTURE,
    )


PICTURE = picture()


def refused(request: pb.GenerateRequest, engines: Catalog, shelf: Shelf) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        plan(request, engines, shelf)
    return caught.value


def test_a_thousand_hostile_names_are_invalid_arguments_in_every_field_and_reach_no_file(
    catalog: Catalog, library: Library
) -> None:
    names, shelf = hostile(), library.shelf("ann")
    assert len(names) >= COUNT
    before = listing(library.folder.parent)
    for name in names:
        begun = time.thread_time()
        error = refused(asked(name), catalog, shelf)
        fault = fault_of(error)
        assert fault is not None
        assert (fault.code, fault.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), name
        told = {violation.field for violation in error.violations}
        key = name[:100]
        wanted = {"checkpoint", "vae", f"loras[{key}]", f"textual_inversions[{key}]", "controlnet", "ip_adapter"}
        assert told >= wanted, (name, told)
        assert sum(len(k) + len(v) * 4 / 3 for k, v in trailers(fault)) < METADATA_BYTES, name
        assert time.thread_time() - begun < SECONDS, name
    assert listing(library.folder.parent) == before


def test_the_same_request_with_names_that_there_are_is_not_refused_for_them(catalog: Catalog, library: Library) -> None:
    """The test above can fail."""
    request = asked("x")
    request.checkpoint, request.vae, request.ip_adapter, request.controlnet = "paper", "octoai:print", "look", ""
    request.ClearField("controlnet_image")
    request.ClearField("textual_inversions")
    del request.loras["x"]
    request.loras["style"] = 1.0
    made = plan(request, catalog, library.shelf("ann"))
    assert made.variants


def listing(folder: Path) -> list[tuple[str, int]]:
    """All files below a folder; the database's own journal comes and goes."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("assets.sqlite-"))
    return sorted((str(path), path.stat().st_size) for path in files)
