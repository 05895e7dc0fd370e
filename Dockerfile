# syntax=docker/dockerfile:1
# Builds the production image: the engine without `posduif demo`. The settings are environment variables, as in
# .env.example; docker-compose.yml runs a complete system.
#
#   docker build --build-arg POSDUIF_COMMIT=$(git rev-parse --short=12 HEAD) -t posduif .

# The pages of the console, which the program contains.
FROM node:20-bookworm-slim AS web
WORKDIR /src/web
COPY web/package.json web/package-lock.json ./
RUN npm ci --no-audit --no-fund --loglevel=error
COPY clients/typescript/src ../clients/typescript/src
COPY web ./
RUN npm run --silent build

# The same Debian release in both stages: the program is linked against its C library.
FROM rust:1.95-slim-bookworm AS build
# ring compiles C.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# Dependencies first, with empty sources in place of ours: this layer is cached until they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src examples tests benches/live sql \
    && echo 'fn main() {}' | tee src/main.rs tests/main.rs examples/phone.rs benches/replication.rs benches/sync.rs \
        benches/api.rs benches/live/main.rs >/dev/null \
    && echo 'fn main() {}' > build.rs \
    && touch src/lib.rs \
    && cargo build --profile dist --no-default-features --locked --bin posduif \
    && rm -rf src examples tests benches sql build.rs target/dist/posduif* target/dist/deps/*posduif* target/dist/build/posduif* \
        target/dist/.fingerprint/posduif*

COPY build.rs ./
COPY sql sql
COPY migrations migrations
COPY docs/openapi.yaml docs/openapi-admin.yaml docs/
COPY config/demo.yaml config/demo.yaml
COPY --from=web /src/web/dist web/dist
COPY src src
# The commit for `posduif --version`: the build context has no repository.
ARG POSDUIF_COMMIT=
RUN mkdir -p tests benches/live examples \
    && touch tests/main.rs examples/phone.rs benches/replication.rs benches/sync.rs benches/api.rs benches/live/main.rs \
    && POSDUIF_COMMIT=$POSDUIF_COMMIT cargo build --profile dist --no-default-features --features web --locked --bin posduif

FROM debian:bookworm-slim
# Certificate authorities for TLS to Postgres and Redis.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent posduif
COPY --from=build /src/target/dist/posduif /usr/local/bin/posduif
USER 10001:10001
WORKDIR /
ENV POSDUIF__SERVER__HOST=0.0.0.0 \
    POSDUIF__SERVER__PORT=8080 \
    POSDUIF__ADMIN__LISTEN=127.0.0.1:8081 \
    POSDUIF__LOG__FORMAT=json
EXPOSE 8080
# Liveness, not readiness: restarting the container does not help while Redis is unreachable. /ready is for the load
# balancer. The admin listener answers while the public one has no connection left; without it the check only opens a
# connection to the public one.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "if [[ $POSDUIF__ADMIN__LISTEN == off ]]; then exec 3<>/dev/tcp/127.0.0.1/$POSDUIF__SERVER__PORT; else exec 3<>/dev/tcp/127.0.0.1/${POSDUIF__ADMIN__LISTEN##*:} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '; fi"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/posduif"]
CMD ["serve"]
