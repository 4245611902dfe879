# One image for the API, the watchdog, the workers and the jobs: docs/operations/image.md.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS base
# The versions of Debian's packages are those of its stable release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git python3 python3-venv tini \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tuneyard
ENV PATH=/opt/tuneyard/bin:$PATH

FROM base AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist /source

FROM base
# `cuda` adds what only GPUs need. PyTorch's wheel on PyPI has CUDA in it; TORCH_INDEX_URL names an index of smaller ones.
ARG VARIANT=cpu
ARG EXTRAS=s3,kubernetes,docker,servers
ARG TORCH_INDEX_URL=
WORKDIR /opt/tuneyard
# Libraries and Tuneyard are layers of their own, so that an update of Tuneyard is a download of a megabyte.
COPY constraints.txt pyproject.toml deploy/requirements.py ./
RUN python requirements.py "${EXTRAS}$([ "${VARIANT}" != cuda ] || echo ,cuda)" > requirements.txt \
    && if [ -n "${TORCH_INDEX_URL}" ]; then \
        pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX_URL}" --constraint constraints.txt torch; \
    fi \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /dist /tmp/dist
RUN pip install --no-cache-dir --no-deps /tmp/dist/*.whl \
    && useradd --uid 10001 --user-group --home-dir /var/lib/tuneyard --shell /usr/sbin/nologin tuneyard \
    && install --directory --mode=0700 --owner=tuneyard --group=tuneyard /var/lib/tuneyard /store
COPY --chmod=0755 deploy/entrypoint.sh /usr/local/bin/tuneyard-entrypoint

# All that is written lies in /var/lib/tuneyard and /tmp; the rest may be read-only.
ENV HOME=/var/lib/tuneyard \
    TUNEYARD_HOME=/var/lib/tuneyard \
    TUNEYARD_HOST=0.0.0.0 \
    PYTHONUNBUFFERED=1 \
    PYTHONUTF8=1 \
    DO_NOT_TRACK=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /var/lib/tuneyard
USER 10001:10001
EXPOSE 23478
ENTRYPOINT ["tini", "--", "tuneyard-entrypoint"]
CMD ["tuneyard", "serve"]
