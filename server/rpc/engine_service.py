"""EngineService: the catalog in the words of the API."""

from mediagen.v1 import engine_pb2 as pb
from mediagen.v1 import engine_pb2_grpc, image_pb2

from server.catalog import Catalog, Engine
from server.engines.port import Engines
from server.rpc.interceptor import Context


class EngineService(engine_pb2_grpc.EngineServiceServicer):
    """Reads only."""

    def __init__(self, catalog: Catalog, engines: Engines) -> None:
        self._catalog = catalog
        self._engines = engines

    async def ListEngines(self, request: pb.ListEnginesRequest, context: Context) -> pb.ListEnginesResponse:
        ready = frozenset(await self._engines.ready())
        return pb.ListEnginesResponse(engines=[_engine(self._catalog[name], ready) for name in sorted(self._catalog)])


def _engine(engine: Engine, ready: frozenset[str]) -> pb.Engine:
    models = [spec.name for spec in engine.specs]
    return pb.Engine(
        name=engine.card.name,
        family=engine.family.name,
        title=engine.card.title,
        source=engine.card.source,
        state=pb.ENGINE_STATE_READY if ready.issuperset(models) else pb.ENGINE_STATE_UNAVAILABLE,
        sizes=[image_pb2.Size(width=size.width, height=size.height) for size in engine.family.sizes],
        default_size=image_pb2.Size(width=engine.family.default_size.width, height=engine.family.default_size.height),
        samplers=() if "sampler" in engine.refuses else [f"SAMPLER_{name}" for name in engine.family.samplers],
        models=models,
    )
