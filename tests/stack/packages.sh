#!/bin/sh
# Install the missing Debian packages of the stack. As root only: other users run the embedded
# stack, which needs only Python's venv module.
set -eu
python=${1:-python3}
missing=
need() { # program, package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
if [ "$(id -u)" = 0 ] && [ "${STACK:-slurm}" = slurm ]; then
    need slurmctld slurm-wlm
    need slurmdbd slurmdbd
    need munged munge
    need mariadbd mariadb-server
    need sshd openssh-server
    need ssh-keygen openssh-client
    need chromium chromium # of the dashboard's tests
    need python3 python3 # on the nodes, which share this machine
fi
command -v uv >/dev/null 2>&1 || "$python" -c 'import ensurepip' 2>/dev/null ||
    missing="$missing python3-venv"
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "setup: missing:$missing; install these packages, then try again" >&2
    exit 1
fi
echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null
