# The gateway: `branchline gateway`, without torch. Build from the repository's root:
#   docker build -f docker/gateway.Dockerfile -t branchline-gateway .
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
ENV PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home branchline && install -d -o branchline -g branchline /data
COPY --from=build /wheels /wheels
COPY constraints.txt docker/healthcheck.py /opt/branchline/
RUN pip install --no-cache-dir -c /opt/branchline/constraints.txt \
      "$(echo /wheels/branchline-*.whl)[gateway,tracing]"
USER 10001
WORKDIR /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=10s --start-period=5m --retries=3 \
  CMD ["python", "/opt/branchline/healthcheck.py", "http://127.0.0.1:8080"]
ENTRYPOINT ["branchline"]
CMD ["gateway", "--help"]
