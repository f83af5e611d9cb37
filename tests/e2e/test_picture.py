"""What the service is for: a prompt goes in, and the picture that comes out shows what it says."""

from io import BytesIO

import numpy as np
from mediagen.client import Client
from mediagen.v1 import image_pb2 as pb
from PIL import Image

from demo.probes import Facts, examine
from demo.scenes import Scene, Thing

PROMPT = "a red house and a sailboat at sunset"  # of the README
SCENE = Scene(
    "sea", "sunset", (Thing("house", "red", "left"), Thing("sailboat", "white", "right")),
    sun=True, moon=False, stars=False, clouds=False, mountains=False, seed=0,
)  # fmt: skip
SEED = 7


def examined(client: Client, prompt: str) -> Facts:
    """What of the scene holds in the picture of a prompt, everything else left to the API's defaults."""
    reply = client.generate(pb.GenerateRequest(engine="sd15", prompt=prompt, seed=SEED))
    picture = np.asarray(Image.open(BytesIO(reply.images[0].data)).convert("RGB"))
    assert picture.shape == (512, 512, 3)
    made = reply.effective
    assert (made.sampler, made.steps, made.cfg_scale) == (pb.SAMPLER_DDIM, 30, 12.0)
    return examine(picture, SCENE)


def test_the_readmes_prompt_gives_its_picture_and_a_blue_house_is_another(service_address: str) -> None:
    with Client(service_address) as client:
        facts = examined(client, PROMPT)
        assert facts.all, facts
        assert not examined(client, PROMPT.replace("red", "blue")).all
