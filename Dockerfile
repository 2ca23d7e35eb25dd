# syntax=docker/dockerfile:1
# Targets: cpu (default) and gpu.
#   docker build --target cpu -t sightfix:cpu .
#   docker run --rm -p 127.0.0.1:8080:8080 -e SIGHTFIX_INSECURE=true \
#     -v "$PWD/indexes:/indexes:ro" -v "$PWD/photos:/photos:ro" sightfix:cpu
# In the container all addresses are listened on: give SIGHTFIX_API_KEYS, or say with SIGHTFIX_INSECURE that it is meant.
# Photos are read again for thumbnails only, from the path they were indexed at.

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY retrieval retrieval
COPY training training
COPY export export
COPY index_builder index_builder
COPY service service
COPY sightfix sightfix
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS build-cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY --from=build /wheels /wheels
COPY constraints.txt /
RUN python -m venv /opt/sightfix \
 && /opt/sightfix/bin/pip install -c /constraints.txt "sightfix[cpu,milvus,rerank] @ file://$(ls /wheels/*.whl)" \
 && /opt/sightfix/bin/pip uninstall --yes pip setuptools

# CUDA 13 and cuDNN 9, which onnxruntime-gpu needs. Ubuntu 24.04 brings Python 3.12.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base-gpu
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/*

FROM base-gpu AS build-gpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
COPY constraints.txt /
RUN python3 -m venv /opt/sightfix \
 && /opt/sightfix/bin/pip install -c /constraints.txt "sightfix[gpu,milvus,rerank] @ file://$(ls /wheels/*.whl)" \
 && /opt/sightfix/bin/pip uninstall --yes pip

FROM base-gpu AS gpu
COPY --from=build-gpu /opt/sightfix /opt/sightfix
RUN useradd --uid 10001 --create-home sightfix && mkdir /indexes && chown sightfix /indexes
ENV PATH=/opt/sightfix/bin:$PATH PYTHONUNBUFFERED=1 SIGHTFIX_INDEXES=/indexes SIGHTFIX_HOST=0.0.0.0 SIGHTFIX_PROVIDER=cuda \
    ORT_DISABLE_TELEMETRY=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MALLOC_ARENA_MAX=2
USER 10001
WORKDIR /home/sightfix
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["sightfix"]
CMD ["serve"]

FROM python:3.11-slim-bookworm AS cpu
COPY --from=build-cpu /opt/sightfix /opt/sightfix
RUN useradd --uid 10001 --create-home sightfix && mkdir /indexes && chown sightfix /indexes
ENV PATH=/opt/sightfix/bin:$PATH PYTHONUNBUFFERED=1 SIGHTFIX_INDEXES=/indexes SIGHTFIX_HOST=0.0.0.0 \
    ORT_DISABLE_TELEMETRY=1 OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE MALLOC_ARENA_MAX=2
USER 10001
WORKDIR /home/sightfix
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=4)"]
ENTRYPOINT ["sightfix"]
CMD ["serve"]
