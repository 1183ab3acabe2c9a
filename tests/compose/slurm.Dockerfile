# A machine of the cluster. Its command is its role: see slurm.sh.
ARG DEBIAN=docker.io/library/debian:12.11-slim@sha256:b1a741487078b369e78119849663d7f1a5341ef2768798f7b7406c4240f86aef
FROM ${DEBIAN}
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        munge openssh-client openssh-server python3 slurm-wlm slurmdbd \
    && rm -rf /var/lib/apt/lists/* /etc/munge/munge.key /etc/ssh/ssh_host_*
# The same number on every machine: Slurm knows users by it.
RUN useradd --uid 1500 --create-home --shell /bin/bash labuser && usermod -p '*' labuser
COPY tests/compose/slurm.conf /etc/slurm/slurm.conf
COPY --chmod=755 tests/compose/slurm.sh /usr/local/bin/slurm-role
ENTRYPOINT ["slurm-role"]
