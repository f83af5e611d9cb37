"""A request's story, with engines that the test holds and lets go."""

import json

import pytest
from conftest import hold_a_step, steps_after_release
from engines.fake import FakeEngines
from google.protobuf.json_format import ParseDict
from mediagen.v1 import image_pb2 as pb

from server.catalog import Catalog
from server.engines.port import EngineUnavailable, Spec
from server.pipeline import Evaluated, Finished, Picture, generate, parameters
from server.request import plan
from server.scheduler import StepScheduler


@pytest.fixture
def scheduler(fake_engines: FakeEngines) -> StepScheduler:
    """What the pipeline reaches the engines through."""
    return StepScheduler(fake_engines)


@pytest.fixture
def unet(catalog: Catalog) -> Spec:
    """The network of a step."""
    return next(spec for spec in catalog["sd15"].specs if spec.name == "sd15_unet")


def request(**fields: object) -> pb.GenerateRequest:
    """Two steps of the smallest size."""
    return pb.GenerateRequest(**{"engine": "sd15", "prompt": "x", "steps": 2, "width": 384, "height": 704} | fields)


@pytest.mark.parametrize("images", [1, 3])
async def test_closing_a_request_ends_its_work_with_the_step_under_way(
    catalog: Catalog, fake_engines: FakeEngines, scheduler: StepScheduler, unet: Spec, images: int
) -> None:
    events = generate(plan(request(steps=200, num_images=images), catalog), scheduler.run)
    assert isinstance(await anext(events), Evaluated)
    await hold_a_step(fake_engines, unet)
    await events.aclose()
    assert await steps_after_release(fake_engines, scheduler, unet) == 0


async def test_a_fault_is_raised_and_ends_the_work_on_every_picture(
    catalog: Catalog, fake_engines: FakeEngines, scheduler: StepScheduler, unet: Spec
) -> None:
    events = generate(plan(request(steps=200, num_images=9), catalog), scheduler.run)  # 18 rows: two calls a step
    assert isinstance(await anext(events), Evaluated)
    fake_engines.fail(unet.name, EngineUnavailable("gone"))
    with pytest.raises(EngineUnavailable, match="gone"):
        async for _ in events:
            pass
    assert await steps_after_release(fake_engines, scheduler, unet) <= 1  # the call that was already under way


async def test_every_picture_is_denoised_to_its_end_and_then_the_times_are_told(
    catalog: Catalog, scheduler: StepScheduler
) -> None:
    what = plan(request(num_images=2, seed=5), catalog)
    events = [event async for event in generate(what, scheduler.run)]
    for index in range(2):
        assert [e.evaluation for e in events if isinstance(e, Evaluated) and e.index == index] == [1, 2]
    assert {(event.index, event.seed) for event in events if isinstance(event, Picture)} == {(0, 5), (1, 6)}
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert set(finished.milliseconds) == {"conditioning", "denoising", "decoding", "encoding"}
    assert all(value > 0 for value in finished.milliseconds.values())


def test_what_a_file_says_is_the_request_that_makes_it_again(catalog: Catalog) -> None:
    what = plan(
        request(
            negative_prompt="fog",
            cfg_scale=3.5,
            seed=5,
            sampler=pb.SAMPLER_K_EULER,
            image_encoding=pb.IMAGE_ENCODING_PNG,
        ),
        catalog,
    )
    again = ParseDict(json.loads(parameters(what, what.seeds[0])), pb.GenerateRequest())
    assert plan(again, catalog) == what
