# Two images from one file: `service` (web and REST, no torch) and `worker` (runs the jobs on a GPU).
# Every package that goes in is in deploy/*.lock with its hash; `make lock` renews them.
# Pin the base by digest where you build for production: --build-arg PYTHON=python:3.13-slim-trixie@sha256:...
ARG PYTHON=python:3.13-slim-trixie

FROM ${PYTHON} AS build
WORKDIR /src
RUN --mount=type=bind,source=deploy/build.lock,target=/build.lock --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r /build.lock
COPY pyproject.toml README.md LICENSE* NOTICE* ./
COPY dkl dkl
COPY service service
COPY workers workers
COPY docs docs
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

# What both have in common: nobody is root, nothing is written outside of /data and /tmp, no byte code at run time.
FROM ${PYTHON} AS base
RUN groupadd --gid 10001 dklbench && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp dklbench \
    && install -d -o dklbench -g dklbench -m 0750 /data
ENV DKLBENCH_DATA_DIR=/data DKLBENCH_LOG_FORMAT=json HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp

FROM base AS service
RUN --mount=type=bind,source=deploy/service.lock,target=/service.lock \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r /service.lock
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl
ENV DKLBENCH_HOST=0.0.0.0
USER 10001:10001
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/livez', timeout=3)"]
CMD ["dklbench", "serve"]

FROM base AS worker
# The one compiler here: recipes with `compile` have Triton build a launcher for every kernel, with gcc.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# The CUDA libraries come with torch's wheels; the driver comes from the host.
RUN --mount=type=bind,source=deploy/worker.lock,target=/worker.lock \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --require-hashes -r /worker.lock
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir --no-deps /wheels/*.whl
# Compiled kernels are kept in /data: a tmpfs may not be executed from.
ENV REMAP_SIGTERM=SIGQUIT PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/data/cache TORCHINDUCTOR_CACHE_DIR=/data/cache/inductor TRITON_CACHE_DIR=/data/cache/triton
USER 10001:10001
VOLUME /data
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s --retries=3 CMD ["dklbench", "worker-health"]
CMD ["celery", "-A", "workers.app", "worker", "--loglevel", "INFO"]
