# The gateway with the embedded Triton inside, on a CPU.
#   docker build -f docker/gateway.Dockerfile -t mediagen .
#   docker run --rm --shm-size=256m -p 127.0.0.1:50051:50051 mediagen
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/mediagen
COPY pyproject.toml README.md ./
COPY client client
COPY server server
RUN /opt/mediagen/bin/pip install --no-cache-dir --disable-pip-version-check '.[serve]'

# The same base: the environment refers to its Python, and Triton needs that Python's shared library, which it has.
FROM python:3.11-slim-bookworm
RUN useradd --system --create-home mediagen && install -d -o mediagen -g mediagen /var/cache/mediagen /var/lib/mediagen
COPY --from=build /opt/mediagen /opt/mediagen
COPY model_repository /models
# Triton listens on loopback inside the container; only the gateway's ports are for callers.
ENV PATH=/opt/mediagen/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MEDIAGEN_GRPC_ADDRESS=0.0.0.0:50051 \
    MEDIAGEN_HTTP_ADDRESS=0.0.0.0:50080 \
    MEDIAGEN_MODEL_REPOSITORY=/models \
    MEDIAGEN_CACHE=/var/cache/mediagen \
    MEDIAGEN_ASSETS=/var/lib/mediagen/assets
VOLUME /var/lib/mediagen
USER mediagen
EXPOSE 50051 50080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "\
import grpc; \
from grpc_health.v1 import health_pb2 as pb, health_pb2_grpc as stubs; \
stub = stubs.HealthStub(grpc.insecure_channel('127.0.0.1:50051')); \
raise SystemExit(stub.Check(pb.HealthCheckRequest(), timeout=4).status != pb.HealthCheckResponse.SERVING)"]
CMD ["mediagen", "serve"]
