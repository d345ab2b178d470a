# Two images from one file: `service` (web and REST, no torch) and `worker` (runs the jobs on a GPU).
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dkl dkl
COPY service service
COPY workers workers
COPY migrations migrations
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.12-slim AS service
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir /wheels/*.whl \
    && useradd --uid 10001 --create-home dklbench && install -d -o dklbench /data
ENV DKLBENCH_DATA_DIR=/data
USER dklbench
EXPOSE 8000
CMD ["uvicorn", "service.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", \
     "--timeout-graceful-shutdown", "5"]

FROM python:3.12-slim AS worker
# The CUDA libraries come with torch's wheels; the driver comes from the host.
RUN --mount=from=build,source=/wheels,target=/wheels pip install --no-cache-dir "$(echo /wheels/*.whl)[engine]" \
    && useradd --uid 10001 --create-home dklbench && install -d -o dklbench /data
ENV DKLBENCH_DATA_DIR=/data REMAP_SIGTERM=SIGQUIT PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
USER dklbench
CMD ["celery", "-A", "workers.app", "worker", "--loglevel", "INFO"]
