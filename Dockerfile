# The relay as an image: one static binary, no shell, nothing else that could need an update.
#
#   docker build -t vauchi-relay .
#   docker build --build-arg COMMIT="$(git rev-parse --short HEAD)" -t vauchi-relay .

ARG RUST=1.95

FROM rust:${RUST}-slim-bookworm AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# musl-tools: the C compiler for the bundled SQLite. Its version is the base image's business.
# hadolint ignore=DL3008
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends musl-tools \
    && rm -rf /var/lib/apt/lists/* \
    && rustup target add "$(uname -m)-unknown-linux-musl"
WORKDIR /build
# Nobody reads symbols in an image without a shell; a panic names its line all the same.
ENV CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=symbols

# The dependencies in a layer of their own: it is built again only when these files change. Cargo wants every target
# that Cargo.toml names to be there.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir -p src benches tests/it \
    && touch src/lib.rs \
    && benches=$(sed -n '/^\[\[bench\]\]/,/^$/s/^name = "\(.*\)"/benches\/\1.rs/p' Cargo.toml) \
    && for file in build.rs src/main.rs $benches tests/it/main.rs; do \
        echo 'fn main() {}' >"$file"; done \
    && cargo build --release --locked --target "$(uname -m)-unknown-linux-musl"

COPY build.rs ./
COPY migrations migrations
COPY proto proto
COPY src src
# VERSION is Cargo.toml's; to give another one is a mistake. COMMIT is shown by --version and the log.
ARG VERSION=0.1.0
ARG COMMIT=
# touch: what was copied is older than what cargo has just built in its place.
RUN grep -qxF "version = \"$VERSION\"" Cargo.toml \
        || { echo "VERSION is $VERSION, but Cargo.toml says: $(grep -m1 ^version Cargo.toml)" >&2; exit 1; } \
    && touch build.rs src/lib.rs src/main.rs \
    && VAUCHI_COMMIT="$COMMIT" cargo build --release --locked --target "$(uname -m)-unknown-linux-musl" \
    && mkdir -p /image/bin /image/etc /image/volume/data \
    && cp "target/$(uname -m)-unknown-linux-musl/release/vauchi-relay" /image/bin/ \
    && echo 'vauchi:x:1000:1000::/data:/sbin/nologin' >/image/etc/passwd \
    && echo 'vauchi:x:1000:' >/image/etc/group \
    && chmod 1777 /image/volume/data

# No CA certificates: the relay calls nobody. No time zones: it thinks in UTC.
FROM scratch
ARG VERSION=0.1.0
ARG COMMIT=
LABEL org.opencontainers.image.title="vauchi-relay" \
      org.opencontainers.image.description="A store-and-forward relay for end-to-end encrypted blobs" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /image/etc/ /etc/
# A new volume takes over the owner and the mode of this folder. Anybody may write to it, so that the image works with
# any --user; what the relay puts there is for its own user only.
COPY --from=build --chown=1000:1000 /image/volume/ /
COPY --from=build /image/bin/ /usr/local/bin/
# In numbers: Kubernetes cannot tell whether a name is root.
USER 1000:1000
VOLUME /data
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/local/bin/vauchi-relay", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/vauchi-relay"]
CMD ["serve"]
