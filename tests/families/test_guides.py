"""Which network does which evaluations where pictures guide, and what it is told; over networks of a few lines."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from json_service import hollow
from mediagen.v1 import image_pb2 as pb

from server.adapters.control import Control
from server.adapters.ip_adapter import ImagePrompt
from server.catalog import Engine, read_catalog
from server.engines.port import Array, Spec, Tensors
from server.families.base import Size
from server.pipeline import Picture, generate
from server.plan import Plan
from server.request import plan

SIZE = Size(64, 64)
BLOCKS = (
    "down_blocks.2.attentions.1.transformer_blocks.0.attn2",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn2",
)


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def engine(request: pytest.FixtureRequest, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A card with every graph, and tokenizers; no networks."""
    folder, name = tmp_path_factory.mktemp("adapted"), request.param
    card = json.loads((repository / f"{name}.json").read_text())
    card |= {"control": True, "image_side": 32, "image_width": 6, "vision_width": 8, "image_patches": 5}
    card |= {"ip_blocks": BLOCKS, "ip_plus": True}
    folder.joinpath(f"{name}.json").write_text(json.dumps(card))
    folder.joinpath("preprocessor_depth").mkdir()
    folder.joinpath("preprocessor_depth", "config.pbtxt").touch()
    for tokenizer in repository.glob(f"{name}_*/tokenizer.json"):
        path = folder / tokenizer.parent.name / "tokenizer.json"
        path.parent.mkdir()
        path.write_text(tokenizer.read_text())
    return read_catalog(folder)[name]


class Ran:
    """Networks that give zeros; `asked` has every execution."""

    def __init__(self, engine: Engine) -> None:
        self.asked: list[tuple[str, Tensors]] = []
        self._pixels_per_latent = engine.card.pixels_per_latent

    async def run(self, spec: Spec, inputs: Tensors) -> Mapping[str, Array]:
        spec.check(inputs)
        self.asked.append((spec.name, inputs))
        outputs = hollow(spec, self._pixels_per_latent, inputs)
        return {
            name: tensor + 1 if name in ("image_embeds", "hidden_states") else tensor
            for name, tensor in outputs.items()
        }

    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.asked)

    def inputs(self, name: str) -> list[Tensors]:
        return [inputs for asked, inputs in self.asked if asked == name]


def plan_of(engine: Engine, **fields: Any) -> Plan:
    name = engine.card.name
    asked = {"engine": name, "prompt": "a red house", "steps": 5, "num_images": 2, "sampler": pb.SAMPLER_DDIM, **fields}
    made = plan(pb.GenerateRequest(**asked), {name: engine})
    return dataclasses.replace(made, size=SIZE)


def controlled(made: Plan, preprocessor: str = "canny", early_stop: float = 1.0) -> Plan:
    picture, mask = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, bool)
    return dataclasses.replace(made, control=Control(picture, mask, preprocessor, 0.5, early_stop))


def prompted(made: Plan, **fields: Any) -> Plan:
    side = SIZE.width // made.engine.card.pixels_per_latent
    prompt = ImagePrompt(
        pixel_values=np.ones((3, 32, 32), np.float32),
        mask=np.ones((side, side), np.float32),
        method="full",
        scale=0.5,
        projection="linear",
    )
    return dataclasses.replace(made, image_prompt=dataclasses.replace(prompt, **fields))


async def ran(made: Plan) -> Ran:
    networks = Ran(made.engine)
    assert len([event async for event in generate(made, networks.run) if isinstance(event, Picture)]) == 2
    return networks


@pytest.mark.parametrize("early_stop", [0.0, 0.1, 0.3, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("sampler", [pb.SAMPLER_DDIM, pb.SAMPLER_HEUN, pb.SAMPLER_PNDM])
async def test_a_controlnet_does_its_share_of_all_evaluations_and_only_what_runs_is_named(
    engine: Engine, sampler: int, early_stop: float
) -> None:
    made = controlled(plan_of(engine, sampler=sampler), early_stop=early_stop)
    networks, name = await ran(made), engine.card.name
    assert networks.counts() == made.executions
    evaluations = made.sampler.evaluations(made.walked)
    kept = sum((index + 1) / evaluations <= early_stop for index in range(evaluations))
    base = made.sampler.evaluations(made.base_steps)
    assert networks.counts()[f"{name}_unet_control"] == 2 * min(kept, base)
    assert networks.counts()[f"{name}_unet"] == 2 * (base - min(kept, base))


async def test_a_map_is_made_once_by_the_deployments_engine_where_no_code_makes_it(engine: Engine) -> None:
    networks = await ran(controlled(plan_of(engine), preprocessor="depth"))
    assert networks.counts()["preprocessor_depth"] == 1
    told = networks.inputs(f"{engine.card.name}_unet_control")
    assert all(inputs["control"].shape == (2, *SIZE, 4) for inputs in told)
    assert all((inputs["control"][..., 3] == 255).all() for inputs in told)
    assert all(inputs["control_scale"].tolist() == [0.5, 0.5] for inputs in told)


@pytest.mark.parametrize("projection", ["linear", "plus"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
async def test_a_picture_prompt_is_looked_at_once_and_only_what_runs_is_named(
    engine: Engine, projection: str, guidance: float
) -> None:
    made = prompted(plan_of(engine, cfg_scale=guidance), projection=projection)
    networks, name = await ran(made), engine.card.name
    assert networks.counts() == made.executions
    assert networks.counts()[f"{name}_image_encoder"] == 1
    assert networks.counts()[f"{name}_unet_ip"] == 2 * made.sampler.evaluations(made.base_steps)


async def test_the_negative_half_is_of_no_picture(engine: Engine) -> None:
    """As each kind of adapter was trained: zeros for the embedding, or the states of a picture of zeros."""
    name = engine.card.name
    (embeds,) = (await ran(prompted(plan_of(engine)))).inputs(f"{name}_ip_projection")
    assert embeds["image_embeds"].tolist() == [[0.0] * 6, [1.0] * 6]
    (pixels,) = (await ran(prompted(plan_of(engine), projection="plus"))).inputs(f"{name}_image_encoder")
    assert not pixels["pixel_values"][0].any()
    assert pixels["pixel_values"][1].all()


async def test_a_method_drives_its_own_blocks(engine: Engine) -> None:
    name = engine.card.name
    found = {}
    for method in ("full", "style", "composition"):
        networks = await ran(prompted(plan_of(engine), method=method))
        found[method] = networks.inputs(f"{name}_unet_ip")[0]["ip_scale"][1].tolist()
    style = [0.0, 0.5] if name == "sdxl" else [0.0, 0.0]  # SD 1.5's is up_blocks.1
    assert found == {"full": [0.5, 0.5], "style": style, "composition": [0.5, 0.0]}


async def test_a_refiner_is_told_of_no_picture(engine: Engine) -> None:
    networks = await ran(controlled(plan_of(engine)))
    for inputs in networks.inputs(f"{engine.card.name}_refiner"):
        assert "control" not in inputs
