# syntax=docker/dockerfile:1
# A worker of cellhook. Handlers that are programs belong into an image that begins with FROM this one. docs/install.md tells how to
# run it. tests/docker-steps.sh runs the steps of the first stage, and the binary as the last stage starts it, without an engine.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin cellhook \
    && install -D -m 0755 target/release/cellhook out/cellhook

FROM debian:bookworm-slim
# tini is process 1: it passes signals on, and reaps what handlers' children leave behind, which the daemon does not know of.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tini \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 65532 -g 65532 -m 0700 /var/lib/cellhook
COPY --from=build /src/out/cellhook /usr/bin/cellhook
# The config is mounted at /etc/cellhook/cellhook.toml; all of it can be read-only but for this directory.
ENV CELLHOOK_CONFIG=/etc/cellhook/cellhook.toml CELLHOOK_METRICS__LISTEN=0.0.0.0:9464
USER 65532:65532
WORKDIR /var/lib/cellhook
VOLUME /var/lib/cellhook
EXPOSE 9464
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["cellhook", "health"]
ENTRYPOINT ["tini", "--", "cellhook"]
CMD ["run"]
