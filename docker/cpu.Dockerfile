# A small image that serves a bundle on a CPU: no torch, no compiler, no root.
#
#   docker build -f docker/cpu.Dockerfile -t dinov2rt:cpu .
#   docker run --rm -p 8000:8000 -v "$PWD/artifacts/dinov2_vits14_reg:/bundle:ro" dinov2rt:cpu
#   curl --data-binary @photo.jpg localhost:8000/features
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY constraints.txt /tmp/
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --constraint /tmp/constraints.txt fastapi uvicorn \
        "dinov2rt[openvino,image] @ file://$(ls /wheels/dinov2rt-*.whl)" \
    && rm /tmp/constraints.txt
COPY examples/service.py /app/service.py
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin dinov2rt
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "/app/service.py"]
CMD ["/bundle", "--host", "0.0.0.0", "--port", "8000"]
