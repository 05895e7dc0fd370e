# syntax=docker/dockerfile:1
# Builds the production image: the engine without `posduif demo`. The settings are environment variables, as in
# .env.example; docker-compose.yml runs a complete system.
#
#   docker build --build-arg POSDUIF_COMMIT=$(git rev-parse --short=12 HEAD) -t posduif .
#
# For other processors too: docker buildx build --platform linux/amd64,linux/arm64. There are no cache mounts, since other
# builds of the machine can write to them; layers are the cache.

# The images it starts from. Name them by digest (debian@sha256:…) for builds that can be repeated.
ARG NODE_IMAGE=node:24-bookworm-slim
ARG RUST_IMAGE=rust:1.95-slim-bookworm
# The same Debian release as Rust's: the program is linked against its C library.
ARG BASE_IMAGE=debian:bookworm-slim

# The pages of the console, which the program contains. They are the same for all processors.
FROM --platform=$BUILDPLATFORM $NODE_IMAGE AS web
WORKDIR /src/web
COPY web/package.json web/package-lock.json ./
# Without the scripts of packages: the build needs none.
RUN npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
COPY clients/typescript/src ../clients/typescript/src
COPY web ./
RUN npm run --silent build

FROM $RUST_IMAGE AS build
# ring compiles C.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src

# Dependencies first, with empty sources in place of ours: this layer is cached until they change.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p src examples/phone_driver tests benches/live benches/hostile sql \
    && echo 'fn main() {}' | tee src/main.rs tests/main.rs examples/phone.rs examples/phone_driver/main.rs \
        benches/replication.rs benches/lanes.rs benches/sync.rs benches/api.rs benches/live/main.rs benches/hostile/main.rs >/dev/null \
    && echo 'fn main() {}' > build.rs \
    && touch src/lib.rs \
    && cargo build --profile dist --no-default-features --locked --bin posduif \
    && rm -rf src examples tests benches sql build.rs target/dist/posduif* target/dist/deps/*posduif* target/dist/build/posduif* \
        target/dist/.fingerprint/posduif*

COPY build.rs ./
COPY sql sql
COPY migrations migrations
COPY docs/openapi.yaml docs/openapi-admin.yaml docs/sync-protocol.md docs/
COPY config/demo.yaml config/demo.yaml
COPY --from=web /src/web/dist web/dist
COPY src src
# The commit for `posduif --version`: the build context has no repository.
ARG POSDUIF_COMMIT=
RUN mkdir -p tests benches/live benches/hostile examples/phone_driver \
    && touch tests/main.rs examples/phone.rs examples/phone_driver/main.rs benches/replication.rs benches/lanes.rs benches/sync.rs \
        benches/api.rs benches/live/main.rs benches/hostile/main.rs \
    && POSDUIF_COMMIT=$POSDUIF_COMMIT cargo build --profile dist --no-default-features --features web --locked --bin posduif

FROM $BASE_IMAGE
# Certificate authorities for TLS to Postgres and Redis. No program of the image may give its user other rights.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home --home-dir /nonexistent posduif \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/posduif/
COPY --chmod=755 config/healthcheck.sh /usr/local/bin/posduif-healthcheck
COPY --from=build /src/target/dist/posduif /usr/local/bin/posduif
USER 10001:10001
WORKDIR /
# They have precedence over a file of settings.
ENV POSDUIF__SERVER__HOST=0.0.0.0 \
    POSDUIF__SERVER__PORT=8080 \
    POSDUIF__ADMIN__LISTEN=127.0.0.1:8081 \
    POSDUIF__LOG__FORMAT=json
EXPOSE 8080
# An engine listens after its migrations, which may take long; the first success ends the period.
HEALTHCHECK --interval=10s --timeout=3s --start-period=1h --retries=3 CMD ["posduif-healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/posduif"]
CMD ["serve"]
ARG POSDUIF_COMMIT=
LABEL org.opencontainers.image.title=Posduif \
    org.opencontainers.image.licenses="MIT OR Apache-2.0" \
    org.opencontainers.image.revision=$POSDUIF_COMMIT
