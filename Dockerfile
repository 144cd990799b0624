# syntax=docker/dockerfile:1
#
#   docker build --target api    -t pressrun-api .      without torch
#   docker build --target worker -t pressrun-worker .   with torch, Triton and the engine
#
# The worker gets pip's default PyTorch, which brings CUDA along. For a machine without a GPU, name the index of
# another build: --build-arg PIP_EXTRA_INDEX_URL=<index of CPU builds>

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/pressrun/bin:$PATH
RUN useradd --create-home --uid 1000 pressrun \
    && install -d -o pressrun -g pressrun /data \
    && python -m venv /opt/pressrun
ENV PRESSRUN_DATA_DIR=/data
WORKDIR /src

FROM base AS api
COPY . .
RUN pip install .
USER pressrun
WORKDIR /data
VOLUME /data
ENV PRESSRUN_HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["pressrun"]
CMD ["api"]

FROM base AS worker
# Triton compiles a small launcher for each kernel; torch's threads need libgomp.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 \
    && rm -rf /var/lib/apt/lists/*
ARG PIP_EXTRA_INDEX_URL
# Before the sources, so that a change in them does not fetch torch again.
RUN pip install "torch>=2.11,<2.14" "triton>=3.6,<3.8"
COPY . .
RUN pip install ".[engine]"
USER pressrun
WORKDIR /data
VOLUME /data
ENTRYPOINT ["pressrun"]
CMD ["worker"]
