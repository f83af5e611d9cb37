"""Server reflection that also finds methods by name, as `grpcurl describe` and `ghz --call` ask for them.

The protocol's `file_containing_symbol` may be `package.service.method`; protobuf's pool finds no file for that form.
"""

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection


def enable(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Let callers ask `server` what it serves: these services, and reflection itself."""
    pool = cast(Any, _Pool())  # declared as protobuf's class, used by its methods
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server, pool)


class _Pool:
    """The default pool, as far as the reflection servicer asks it."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()
        self.FindFileByName = self._pool.FindFileByName
        self.FindMessageTypeByName = self._pool.FindMessageTypeByName
        self.FindExtensionByNumber = self._pool.FindExtensionByNumber
        self.FindAllExtensions = self._pool.FindAllExtensions

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Raises `KeyError` for what is not there."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file
