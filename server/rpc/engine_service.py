"""EngineService: the catalog in the words of the API."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from mediagen.v1 import engine_pb2 as pb
from mediagen.v1 import engine_pb2_grpc, image_pb2

from server.catalog import Catalog, Engine
from server.engines.port import Condition, State
from server.prompts.styles import STYLES
from server.request import plan
from server.rpc.interceptor import Context


class EngineService(engine_pb2_grpc.EngineServiceServicer):
    """Reads only."""

    def __init__(self, catalog: Catalog, conditions: Callable[[], Awaitable[Mapping[str, Condition]]]) -> None:
        """`conditions` tells of every network how it is."""
        self._catalog = catalog
        self._conditions = conditions
        self._plain = {name: _networks_of_a_plain_request(name, catalog) for name in catalog}

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesResponse:
        conditions = await self._conditions()
        return pb.ListEnginesResponse(
            engines=[_engine(self._catalog[name], self._plain[name], conditions) for name in sorted(self._catalog)]
        )


def _networks_of_a_plain_request(name: str, catalog: Catalog) -> Collection[str]:
    """What a prompt and nothing else runs: an engine that is ready for it is told as ready."""
    what = plan(image_pb2.GenerateRequest(engine=name, prompt="anything"), catalog)
    return what.executions.keys()


def _engine(engine: Engine, plain: Collection[str], conditions: Mapping[str, Condition]) -> pb.Engine:
    models = [spec.name for spec in engine.specs]
    networks = [conditions[model] for model in models]
    return pb.Engine(
        name=engine.card.name,
        family=engine.family.name,
        title=engine.card.title,
        source=engine.card.source,
        state=_state([conditions[model].state for model in plain]),
        sizes=[image_pb2.Size(width=size.width, height=size.height) for size in engine.family.sizes],
        default_size=image_pb2.Size(width=engine.family.default_size.width, height=engine.family.default_size.height),
        samplers=() if "sampler" in engine.refuses else [f"SAMPLER_{name}" for name in engine.family.samplers],
        style_presets=() if "style_preset" in engine.refuses else STYLES,
        models=models,
        memory_bytes=sum(network.memory for network in networks),
        loaded_bytes=sum(network.taken for network in networks),
    )


def _state(networks: Sequence[State]) -> pb.EngineState:
    """Of an engine, by its networks: the worst news first."""
    for state, told in (
        (State.LOST, pb.ENGINE_STATE_UNAVAILABLE),
        (State.LOADING, pb.ENGINE_STATE_LOADING),
        (State.UNLOADED, pb.ENGINE_STATE_UNLOADED),
    ):
        if state in networks:
            return told
    return pb.ENGINE_STATE_READY
