"""A deployment with a safety stage and a prompt filter: a real checker in the real Triton, over gRPC."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from checkpoints import OnlyChecker, write_safety_checker
from conftest import RunningService, start_service, stop_service
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from mediagen.client import Client, MediagenError
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from export.checkpoint import Checkpoint
from export.recipes.safety import COMPONENT, WithSafetyChecker
from export.repository import export
from server.catalog import read_catalog
from server.clip import normalised
from server.safety import SIDE

SNOW, NIGHT = (
    pb.GenerateRequest(
        engine="sd15", prompt=prompt, seed=3, steps=4, width=384, height=704, cfg_scale=5,
        image_encoding=pb.IMAGE_ENCODING_PNG,
    )
    for prompt in ("a red house in the snow", "a sailboat at night")
)  # fmt: skip


def add_checker(repository: Path, removed: np.ndarray, passed: np.ndarray, folder: Path) -> None:
    """Add one of the real architecture to SD 1.5: its concept is what it sees in a picture that another has not."""
    write_safety_checker(folder)
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        shown = torch.from_numpy(np.stack([normalised(removed, SIDE), normalised(passed, SIDE)]))
        seen = torch.nn.functional.normalize(checker.visual_projection(checker.vision_model(shown)[1]))
    state = checker.state_dict()
    state["concept_embeds"][0] = seen[0] - seen[1]
    scores = seen @ torch.nn.functional.normalize(state["concept_embeds"][:1])[0]
    assert scores[0] - scores[1] > 0.02, "the pictures look too much alike to this tower"
    state["concept_embeds_weights"][0] = scores.mean()
    checker.half().save_pretrained(folder)
    checkpoint = Checkpoint(folder, "none").join(COMPONENT, Checkpoint(folder, "a tiny checker"))
    recipe = WithSafetyChecker(OnlyChecker(read_catalog(repository)["sd15"].card))
    export(recipe, checkpoint, recipe.card(checkpoint, "", "", None), repository, lambda text: None)


def pixels(image: pb.Image) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(image.data)).convert("RGB"))


@pytest.fixture(scope="module")
def unchecked(service_address: str) -> tuple[pb.Image, pb.Image]:
    """Both pictures as a service without a safety stage gives them."""
    with Client(service_address) as client:
        snow, night = (client.generate(request).images[0] for request in (SNOW, NIGHT))
    return snow, night


@pytest.fixture(scope="module")
def checking(
    repository: Path, unchecked: tuple[pb.Image, pb.Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """A service that removes the snow and does not draw umbrellas."""
    folder = tmp_path_factory.mktemp("checked")
    models = folder / "models"
    models.mkdir()
    for path in repository.glob("sd15*"):
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, models / path.name)
    snow, night = map(pixels, unchecked)
    add_checker(models, snow, night, folder / "checker")
    (folder / "words.txt").write_text("umbrella  # it might rain\n")
    service = start_service(
        folder,
        MEDIAGEN_MODEL_REPOSITORY=str(models),
        MEDIAGEN_SAFETY="sd15",
        MEDIAGEN_PROMPT_FILTER=str(folder / "words.txt"),
    )
    yield service
    stop_service(service)


@pytest.fixture(scope="module")
def client(checking: RunningService) -> Iterator[Client]:
    with Client(checking.address) as connected:
        yield connected


def test_without_a_safety_stage_the_reply_says_so(unchecked: tuple[pb.Image, pb.Image]) -> None:
    for image in unchecked:
        assert image.safety_check == pb.SAFETY_CHECK_NOT_CHECKED
        assert not image.HasField("safety_score")


def test_one_picture_is_removed_and_the_other_passes_unchanged(
    client: Client, unchecked: tuple[pb.Image, pb.Image]
) -> None:
    (snow,), (night,) = (client.generate(request).images for request in (SNOW, NIGHT))
    assert (snow.safety_check, snow.data, snow.seed) == (pb.SAFETY_CHECK_REMOVED, b"", 3)
    assert 0.5 < snow.safety_score < 1
    assert night.safety_check == pb.SAFETY_CHECK_PASSED
    assert 0 < night.safety_score < 0.5
    assert np.abs(pixels(night).astype(int) - pixels(unchecked[1])).max() <= 2


def test_a_stream_tells_it_as_well_and_the_checker_is_one_of_the_models(client: Client) -> None:
    accepted, *_, image, _ = client.stream(SNOW)
    assert image.image.safety_check == pb.SAFETY_CHECK_REMOVED
    assert not image.image.data
    assert accepted.accepted.effective.models[-1] == "sd15_safety_checker"
    assert client.explain(SNOW).executions["sd15_safety_checker"] == 1


def test_a_word_of_the_list_is_not_drawn(client: Client) -> None:
    request = replace_prompt(SNOW, "a house and an UMBRELLA")
    with pytest.raises(MediagenError) as refused:
        client.generate(request)
    assert refused.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in refused.value.violations] == ["prompt"]
    assert "umbrella" not in str(refused.value).lower()
    assert [violation.field for violation in client.explain(request).violations] == ["prompt"]


def posted(service: RunningService, prompt: str) -> tuple[int, dict[str, Any]]:
    """Status and body of the old route, for the smaller pictures' values."""
    values = {"seed": 3, "steps": 4, "width": 384, "height": 704, "cfg_scale": 5, "image_encoding": "png"}
    with closing(HTTPConnection(service.http_address, timeout=120)) as connection:
        body = json.dumps({"prompt": prompt, **values})
        connection.request("POST", "/generate/sd", body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def test_the_old_routes_tell_both_as_they_always_did(checking: RunningService) -> None:
    status, body = posted(checking, SNOW.prompt)
    (image,) = body["images"]
    assert (status, image["image_b64"], image["removed_for_safety"], image["seed"]) == (200, None, True, 3)
    assert image["safety_score"] > 0.5
    status, body = posted(checking, NIGHT.prompt)
    (image,) = body["images"]
    assert (status, image["removed_for_safety"]) == (200, False)
    assert image["image_b64"]
    status, body = posted(checking, "an umbrella")
    assert status == 400
    assert "umbrella" not in body["message"]


def replace_prompt(request: pb.GenerateRequest, prompt: str) -> pb.GenerateRequest:
    changed = pb.GenerateRequest()
    changed.CopyFrom(request)
    changed.prompt = prompt
    return changed
