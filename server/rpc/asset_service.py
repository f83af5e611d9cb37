"""AssetService: part of the API from the first day, built in a later version."""

from collections.abc import AsyncIterator

from mediagen.v1 import asset_pb2 as pb
from mediagen.v1 import asset_pb2_grpc

from server.rpc.errors import NotBuilt
from server.rpc.interceptor import Context

_SENTENCE = "the asset library is not available in this version; engines draw with their own weights"


class AssetService(asset_pb2_grpc.AssetServiceServicer):
    """Every method says that it is not there yet."""

    async def ListAssets(self, request: pb.ListAssetsRequest, context: Context) -> pb.ListAssetsResponse:
        raise NotBuilt(_SENTENCE)

    async def GetAsset(self, request: pb.GetAssetRequest, context: Context) -> pb.GetAssetResponse:
        raise NotBuilt(_SENTENCE)

    async def UploadAsset(
        self, requests: AsyncIterator[pb.UploadAssetRequest], context: Context
    ) -> pb.UploadAssetResponse:
        raise NotBuilt(_SENTENCE)

    async def DeleteAsset(self, request: pb.DeleteAssetRequest, context: Context) -> pb.DeleteAssetResponse:
        raise NotBuilt(_SENTENCE)
