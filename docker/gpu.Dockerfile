# An image that serves a bundle on an NVIDIA GPU with ONNX Runtime CUDA: no torch, no root.
# The machine needs the NVIDIA driver of CUDA 13 and the NVIDIA Container Toolkit.
#
#   docker build -f docker/gpu.Dockerfile -t dinov2rt:gpu .
#   docker run --rm --gpus all -p 8000:8000 \
#       -v "$PWD/artifacts/dinov2_vits14_reg:/bundle:ro" dinov2rt:gpu
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt /tmp/
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt fastapi uvicorn \
        "dinov2rt[cuda,image] @ file://$(ls /wheels/dinov2rt-*.whl)" \
    && rm /tmp/constraints.txt
COPY examples/service.py /app/service.py
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin dinov2rt
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "/app/service.py"]
CMD ["/bundle", "--host", "0.0.0.0", "--port", "8000"]
