# One image that runs `lair-chat serve`: with the embedded PostgreSQL in /data, or on the one of LAIR_DATABASE__URL.
#
#   docker build -t lair-chat .
#   docker run -p 8008:8008 -v lair-data:/data -e LAIR_SERVER_NAME=example.org lair-chat

FROM python:3.13-slim-bookworm AS build
WORKDIR /source
COPY requirements-build.lock requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements-build.lock \
    && pip wheel --no-cache-dir --require-hashes --no-build-isolation --use-pep517 --wheel-dir /wheels -r requirements.lock
COPY pyproject.toml config.example.yaml LICENSE README.md ./
COPY homeserver homeserver
COPY client_api client_api
COPY federation federation
COPY storage storage
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --no-deps /wheels/*.whl \
    && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin lair \
    && install -d -o lair -g lair -m 0700 /data
USER lair
WORKDIR /data
VOLUME /data
ENV LAIR_DATA_DIR=/data \
    LAIR_LISTENERS__0__BIND=0.0.0.0 \
    PYTHONUNBUFFERED=1
EXPOSE 8008
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request; port = os.environ.get('LAIR_LISTENERS__0__PORT', '8008'); urllib.request.urlopen(f'http://127.0.0.1:{port}/health/ready', timeout=4)"]
ENTRYPOINT ["lair-chat"]
CMD ["serve"]
