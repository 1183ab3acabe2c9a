#!/bin/sh
# The role of one machine: secrets, slurmdbd, slurmctld, slurmd NODE or login.
set -eu
secrets=/secrets

make_secrets() { # once; the volume keeps them
    umask 077
    mkdir -p "$secrets/ssh" "$secrets/client"
    [ -s "$secrets/munge.key" ] || head -c 128 /dev/urandom > "$secrets/munge.key"
    for key in ssh/host_ed25519 client/id_ed25519; do
        [ -s "$secrets/$key" ] || ssh-keygen -q -t ed25519 -N '' -C "development stack" -f "$secrets/$key"
    done
    host=$(cut -d ' ' -f 1,2 "$secrets/ssh/host_ed25519.pub")
    printf '%s\n' "[login]:2222 $host" "[127.0.0.1]:2222 $host" > "$secrets/client/known_hosts"
    [ -s "$secrets/client/passwords.json" ] ||
        printf '{"admin": "%s"}\n' "$AIRFLOW_PASSWORD" > "$secrets/client/passwords.json"
    chmod 711 "$secrets"
    chown -R 50000:0 "$secrets/client" # Airflow's user
}

start_munge() {
    install -o munge -g munge -m 400 "$secrets/munge.key" /etc/munge/munge.key
    install -d -o munge -g munge -m 755 /run/munge
    runuser -u munge -- munged
}

until_it_works() {
    tries=0
    until "$@" > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 120 ] || { echo "$0: gave up waiting for: $*" >&2; exit 1; }
        sleep 1
    done
}

slurmdbd_role() {
    umask 077
    cat > /etc/slurm/slurmdbd.conf <<CONF
AuthType=auth/munge
DbdHost=slurmdbd
SlurmUser=slurm
PidFile=/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=${DATABASE_HOST:-mariadb}
StoragePort=${DATABASE_PORT:-3306}
StorageUser=slurm
StoragePass=$DATABASE_PASSWORD
StorageLoc=slurm
CONF
    chown slurm /etc/slurm/slurmdbd.conf
    exec slurmdbd -D
}

slurmctld_role() {
    until_it_works sacctmgr -n show cluster
    # Each says "nothing new" and fails where it has been added before.
    sacctmgr -i add cluster lab || true
    sacctmgr -i add account lab || true
    sacctmgr -i add user labuser account=lab || true
    install -d -o slurm -g slurm -m 700 /var/lib/slurm/slurmctld
    exec slurmctld -D
}

slurmd_role() {
    mkdir -p /var/lib/slurm/slurmd
    until_it_works scontrol ping
    exec slurmd -D -N "$1"
}

login_role() {
    install -d -o labuser -g labuser -m 755 /home/labuser
    install -d -o labuser -g labuser -m 700 /home/labuser/.aws
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\nregion = %s\n' \
        "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" "$AWS_DEFAULT_REGION" |
        install -o labuser -g labuser -m 600 /dev/stdin /home/labuser/.aws/credentials
    install -m 600 "$secrets/ssh/host_ed25519" /etc/ssh/host_ed25519
    install -m 644 "$secrets/client/id_ed25519.pub" /etc/ssh/authorized_keys
    mkdir -p /run/sshd
    exec /usr/sbin/sshd -D -e -f /dev/null -p 2222 \
        -o HostKey=/etc/ssh/host_ed25519 -o AuthorizedKeysFile=/etc/ssh/authorized_keys \
        -o AllowUsers=labuser -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
        -o PidFile=none -o SetEnv="PLANES_API_URL=${PLANES_API_URL:-}" \
        -o ListenAddress="${LISTEN_ADDRESS:-0.0.0.0}"
}

role=$1
shift
case $role in
    secrets) make_secrets ;;
    slurmdbd | slurmctld | slurmd | login) start_munge && "${role}_role" "$@" ;;
    *) echo "$0: '$role' is no role; write secrets, slurmdbd, slurmctld, slurmd or login" >&2; exit 2 ;;
esac
