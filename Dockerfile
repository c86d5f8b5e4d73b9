# One image for all nodes of a cluster: the driver, Ray's head and its workers (docs/how-to/run-on-a-cluster.md).
#   make dist && docker build --tag phrasebox .
ARG CUDA=12.8.1-base-ubuntu24.04

FROM nvidia/cuda:${CUDA}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# KubeRay's probes call wget in the container. The base image decides which versions there are.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv wget \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/phrasebox \
    PATH=/opt/phrasebox/bin:$PATH \
    PYTHONUNBUFFERED=1

# Exact versions with hashes, as `make` installs them. torch is not among them: its wheels bring CUDA's libraries. Neither
# is Ray's dashboard: KubeRay asks it whether a node is well, and hands it the job.
COPY .locks/run.txt /tmp/locks/
COPY dist/phrasebox-*.whl /tmp/dist/
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install --no-cache-dir --require-hashes --no-deps --requirement /tmp/locks/run.txt \
    && pip install --no-cache-dir "$(echo /tmp/dist/phrasebox-*.whl)[ray]" \
        "ray[default]==$(sed -n -E 's/^ray==([0-9.]+).*/\1/p' /tmp/locks/run.txt)" \
    && pip check

RUN useradd --create-home --uid 1001 phrasebox
USER 1001
WORKDIR /home/phrasebox

CMD ["phrasebox", "--help"]
