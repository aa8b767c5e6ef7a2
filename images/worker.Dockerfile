# A worker, for CPUs or for NVIDIA GPUs, and `polo` beside it, on Debian. The context is a folder with both programs and
# the libraries of their flavour in `lib`, as images/build makes it; in nothing else do the flavours differ.

ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get -qq update && apt-get -qq install --yes --no-install-recommends ca-certificates libstdc++6 >/dev/null \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
ARG VERSION=0.0.0
LABEL org.opencontainers.image.title="polo" \
      org.opencontainers.image.description="A worker of Polo, which trains Qwen2 models across many machines" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY . /opt/polo/
# NVIDIA's variables ask its container runtime for the driver; they mean nothing to others.
ENV PATH=/opt/polo:/usr/local/bin:/usr/bin:/bin HOME=/tmp \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
WORKDIR /tmp
EXPOSE 7100
CMD ["polo", "--help"]
