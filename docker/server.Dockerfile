# A replica: `branchline serve`. Build from the repository's root:
#   docker build -f docker/server.Dockerfile --target cuda -t branchline-server .
#   docker build -f docker/server.Dockerfile --target cpu -t branchline-server:cpu .
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm AS cpu
ENV PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE HF_HOME=/data/hub
RUN useradd --uid 10001 --create-home branchline && install -d -o branchline -g branchline /data
COPY --from=build /wheels /wheels
COPY constraints.txt docker/healthcheck.py /opt/branchline/
# The CPU build of torch: PyTorch's own index has it without the CUDA libraries.
RUN pip install --no-cache-dir -c /opt/branchline/constraints.txt \
      --extra-index-url https://download.pytorch.org/whl/cpu \
      "$(echo /wheels/branchline-*.whl)[serve,gateway,tracing]"
USER 10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 \
  CMD ["python", "/opt/branchline/healthcheck.py", "http://127.0.0.1:8000"]
ENTRYPOINT ["branchline"]
CMD ["serve", "--help"]

# torch brings the CUDA libraries itself; the host brings the driver.
FROM python:3.12-slim-bookworm AS cuda
ENV PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE HF_HOME=/data/hub
# Triton compiles its launchers with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
  && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --create-home branchline && install -d -o branchline -g branchline /data
COPY --from=build /wheels /wheels
COPY docker/healthcheck.py /opt/branchline/
RUN pip install --no-cache-dir "$(echo /wheels/branchline-*.whl)[serve,gateway,tracing]"
USER 10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=10s --start-period=10m --retries=3 \
  CMD ["python", "/opt/branchline/healthcheck.py", "http://127.0.0.1:8000"]
ENTRYPOINT ["branchline"]
CMD ["serve", "--help"]
