# CAT-Seg in a container; docs/docker.md says how to run it.
#   docker build -t cat-seg .
#   docker build -t cat-seg --build-arg BASE=pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime .
ARG BASE=python:3.12-slim

# The wheel is built apart, so that neither sources nor build tools are in the image.
FROM python:3.12-slim AS build
COPY . /source
RUN pip install --no-cache-dir build && python -m build --wheel --outdir /wheels /source

FROM ${BASE}
# For a base without torch. A CUDA base brings it along.
ARG TORCH_INDEX=
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
COPY --from=build /wheels /wheels
RUN python -c "import torch, torchvision" 2> /dev/null \
    || pip install torch torchvision ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
RUN pip install /wheels/*.whl
RUN useradd --create-home catseg && mkdir /data && chown catseg /data
USER catseg
WORKDIR /data
ENTRYPOINT ["cat-seg"]
CMD ["--help"]
