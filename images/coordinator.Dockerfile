# The coordinator: `polo`, the libraries it is linked with, and certificates of authorities; nothing else, so no shell.
# The context is a folder with `polo` in it, as images/build makes it.

ARG BASE=debian:bookworm-slim
FROM ${BASE} AS root
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends ca-certificates libstdc++6 >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
WORKDIR /image
COPY polo usr/local/bin/polo
# `ldd` names the loader, too. Without nsswitch.conf, hosts would be looked for in DNS before /etc/hosts.
RUN ldd usr/local/bin/polo >/linked 2>&1 \
    && ! grep 'not found' /linked \
    && grep -o '/[^ ]*' /linked | xargs cp --dereference --parents --target-directory=. \
    && cp --parents /etc/nsswitch.conf /etc/ssl/certs/ca-certificates.crt . \
    && echo 'polo:x:65532:65532::/tmp:/nonexistent' >etc/passwd \
    && echo 'polo:x:65532:' >etc/group \
    && mkdir --mode=1777 tmp

FROM scratch
ARG VERSION=0.0.0
LABEL org.opencontainers.image.title="polo-coordinator" \
      org.opencontainers.image.description="The coordinator of Polo, which trains Qwen2 models across many machines" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=root /image/ /
ENV PATH=/usr/local/bin HOME=/tmp
USER 65532:65532
WORKDIR /tmp
EXPOSE 7070 7071
ENTRYPOINT ["polo"]
