"""An engine's state is that of its networks, the worst first."""

import pytest
from mediagen.v1 import engine_pb2 as pb

from server.catalog import Catalog
from server.engines.port import Condition, State
from server.rpc.engine_service import EngineService


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ((State.READY, State.READY, State.READY), pb.ENGINE_STATE_READY),
        ((State.READY, State.UNLOADED, State.READY), pb.ENGINE_STATE_UNLOADED),
        ((State.UNLOADED, State.UNLOADED, State.UNLOADED), pb.ENGINE_STATE_UNLOADED),
        ((State.READY, State.LOADING, State.UNLOADED), pb.ENGINE_STATE_LOADING),
        ((State.READY, State.LOADING, State.LOST), pb.ENGINE_STATE_UNAVAILABLE),
    ],
)
async def test_an_engine_is_as_ready_as_its_least_ready_network(
    catalog: Catalog, states: tuple[State, ...], told: pb.EngineState
) -> None:
    networks = [spec.name for spec in catalog["sd15"].specs]
    shown = [name for name in networks if name.endswith(("vae_encoder", "image_encoder"))]
    conditions = {
        name: Condition(state, memory, taken)
        for name, state, memory, taken in zip(
            (*shown, *(name for name in networks if name not in shown)),
            (State.UNLOADED, State.UNLOADED, *states),  # what takes given pictures is not waited for
            (8, 16, 1, 2, 4),
            (0, 0, 1, 0, 4),
            strict=True,
        )
    }

    async def tell() -> dict[str, Condition]:
        return conditions

    reply = await EngineService({"sd15": catalog["sd15"]}, tell).ListEngines(pb.ListEnginesRequest(), None)
    (listed,) = reply.engines
    assert (listed.state, listed.memory_bytes, listed.loaded_bytes) == (told, 31, 5)
    assert list(listed.models) == networks
