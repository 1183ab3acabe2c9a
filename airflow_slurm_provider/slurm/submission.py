"""The programs that run on the login node: exactly one array per submission's folder.

`SUBMIT` runs in ``<remote_dir>/jobs/<folder>/<name>/``. The folder's file system decides which
caller runs ``sbatch``: ``mkdir attempt.<n>`` succeeds for one caller, and n is the fence. ``id`` is
hard-linked into place, so the first array that is recorded is permanently *the* array.

| id          | last attempt  | meaning                  | what a caller does                   |
| ----------- | ------------- | ------------------------ | ------------------------------------ |
| exists      | any           | this is the array        | print it                             |
| "cancelled" | any           | there will never be an   | cancel any that exists, exit 95      |
|             |               | array of this name       |                                      |
| absent      | none          | no caller has tried      | mkdir attempt.1, sbatch, record id   |
| absent      | n, young      | sbatch runs now, or its  | look up the name; found: record id;  |
|             |               | caller was killed        | else wait (exit 92)                  |
| absent      | n, with       | sbatch refused, there is | mkdir attempt.<n+1>, look up the     |
|             | "over"        | surely no array          | name, then as for none               |
| absent      | n, older than | its caller is dead       | as for "over"                        |
|             | 90 s          | (sbatch ends in 65 s)    |                                      |

At each place where a caller may stop, there is one array in the end:

| it stops                       | what is left            | the next caller                       |
| ------------------------------ | ----------------------- | ------------------------------------- |
| before mkdir                   | nothing                 | starts from the beginning             |
| mkdir … sbatch not reached     | attempt, no array       | finds no name until 90 s; takes over  |
| sbatch reached the controller  | attempt, array          | finds the name in squeue or sacct     |
| id recorded, the answer lost   | id                      | reads it                              |

``cancel`` runs `WITHDRAW`. Where Slurm has no array of the name, it links "cancelled" into the
place of ``id``. From then on no caller can record another id, however long it was paused. A caller
may have passed the checks before, and its sbatch may reach the controller only now: its link
fails, and it cancels the array that it made. If it is killed just then, the array's own script
(`guarded`) reads ``id`` before its first command and ends.

The end of the connection stops nothing here: without a terminal sshd sends no signal, and HUP and
PIPE are ignored. A caller on a suspended login node may run sbatch after another caller took over:
its link fails, and it cancels the array it made. The name is also looked up in ``sacct``, for an
array that ended and left the queue. If either command fails, nothing is decided (exit 93): an
error never counts as absence. Logs of workers without any record in Slurm (no accounting, and the
queue has forgotten them) decide nothing either (exit 94).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from enum import IntEnum


class SubmitExit(IntEnum):
    """How `SUBMIT` exits."""

    KNOWN = 0  #: the array's id is on standard output
    UNSAFE = 89  #: another user can change the folder; standard error names the part of its path
    NO_FOLDER = 90  #: the folder can't be entered or written
    REFUSED = 91  #: sbatch refused, and no array of this name exists
    WAIT = 92  #: another caller is submitting it
    UNSURE = 93  #: Slurm may have the array, and does not answer now
    UNTRACEABLE = 94  #: workers have run, and Slurm has no record of them
    CANCELLED = 95  #: the submission was cancelled; no array of it runs


#: In place of an id: there is no array of this name, and there will be none.
CANCELLED = "cancelled"

#: When an attempt without an id is taken over; sbatch is ended well before.
STALE_ATTEMPT_S = 90

#: States of a job that waits or does something. One that is completing only ends, or was put back.
WAITS_OR_RUNS = "PENDING,RUNNING,SUSPENDED,CONFIGURING"

#: Words of sbatch when the controller may or may not have taken the job.
_AMBIGUOUS = (
    "timed out|timeout|contact slurm controller|zero bytes|connection (refused|reset)|"
    "communication|unexpected message|send failure|recv failure|receive failure"
)

#: The variables of the caller that a job gets. They locate programs, modules, the network and AWS's
#: configuration; none is meant for a secret. An address with an "@" is left out, because a password
#: may precede it. Other values, such as a PATH or a profile's name, may have one. `slurm.setup` may
#: set more variables.
EXPORTED = (
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "TMPDIR"),
    *("LANG", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "TZ", "SLURM_CONF", "SLURM_CONF_SERVER"),
    "KRB5CCNAME",
    *("BASH_ENV", "MODULEPATH", "MODULESHOME", "LMOD_CMD", "LMOD_DIR", "LMOD_PKG"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_ENDPOINT_URL_DYNAMODB", "AWS_REQUEST_CHECKSUM_CALCULATION"),
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)

#: sbatch where a site authenticates accounts by a token. The token comes through standard input,
#: because `ps` shows everybody the words of a command. Slurm always passes variables that begin
#: with SLURM to the job: `guarded` removes the token there.
_SBATCH_FROM_STDIN = (
    "IFS= read -r SLURM_JWT; export SLURM_JWT; "
    'exec sbatch --parsable --job-name="$1" script.sh < /dev/null'
)

# `enter` makes the folder $1 and changes into it. New files, here and by sbatch, belong to the
# account alone, whatever its umask. `enter` refuses a folder if another user can change any part
# of its path. The folder must belong to the account, those above it to the account or to root.
# Nobody else may write there, except into a folder above with the sticky bit. So the content is
# what we put there, and nobody can replace it between check and use. `slurm_worker/private.py`
# has the same in Python. It is one line without "!", for the login shells of some accounts.
_ENTER = (
    "umask 077; "
    # Every part of the path, as it is written and as it is without links.
    'parts() { q=${1%/}; shift; while [ -n "$q" ]; do set -- "$@" "$q"; q=${q%/*}; done; '
    'LC_ALL=C ls -ldn / "$@" || echo odd; }; '
    'unsafe() { printf "%s %s\\n" "$1" "/${2#*/}" >&2; exit ' + f"{SubmitExit.UNSAFE}" + "; }; "
    "safe() { me=$(id -u); while read -r mode links owner rest; do case $mode in "
    '[dl]?????????*) ;; *) unsafe odd "$rest" ;; esac; '
    'case $owner in "$me"|0) ;; *) unsafe owner "$rest" ;; esac; '
    "case $mode in l*|d????-??-*|d????????[tT]*) ;; "
    '*) unsafe open "$rest" ;; esac; done; }; '
    'mine() { read -r mode links owner rest; [ "$owner" = "$(id -u)" ] || unsafe owner "$rest"; '
    'case $mode in d????-??-*) ;; *) unsafe open "$rest" ;; esac; }; '
    "enter() { case $1 in /*) written=$1 ;; *) written=$PWD/$1 ;; esac; "
    'mkdir -p -- "$1" && cd -P -- "$1" || exit; if [ -O . ]; then chmod g-w .; fi; '
    '{ parts "$written"; parts "$PWD"; } | safe || exit; '
    'LC_ALL=C ls -ldn "$PWD" | mine || exit; }; '
)

# Portable sh without GNU options, so that it also runs where the embedded cluster does. It is one
# function that the last line calls, so half a program from a broken connection does nothing.
SUBMIT = f"""\
{_ENTER}
main() {{
  place=$1 name=$2 token=$3
  trap '' HUP PIPE
  [ -d "$place" ] || exit {SubmitExit.NO_FOLDER}
  enter "$place"
  if [ -s id ]; then answer; fi
  before=$(last_attempt)
  if [ "$before" -gt 0 ] && [ ! -e "attempt.$before/over" ] && young "attempt.$before"; then
    found=$(look_up) || exit {SubmitExit.WAIT}
    if [ -n "$found" ]; then keep "$found" theirs; fi
    exit {SubmitExit.WAIT}
  fi
  mine=$((before + 1))
  if [ -d "attempt.$mine" ]; then exit {SubmitExit.WAIT}; fi
  error=$(mkdir "attempt.$mine" 2>&1) || {{
    if [ -d "attempt.$mine" ]; then exit {SubmitExit.WAIT}; fi
    printf '%s\n' "$error" >&2
    exit {SubmitExit.NO_FOLDER}
  }}
  date +%s > "attempt.$mine/at"
  if [ "$before" -gt 0 ]; then
    found=$(look_up) || {{ : > "attempt.$mine/over"; exit {SubmitExit.UNSURE}; }}
    if [ -n "$found" ]; then keep "$found" theirs; fi
    if ls worker-*.log >/dev/null 2>&1; then
      : > "attempt.$mine/over"; exit {SubmitExit.UNTRACEABLE}
    fi
  fi
  [ "$(last_attempt)" -eq "$mine" ] || exit {SubmitExit.WAIT}
  run_sbatch "attempt.$mine"
}}

run_sbatch() {{
  attempt=$1
  limit=
  if command -v timeout >/dev/null 2>&1; then limit='timeout -k 5 60'; fi
  set --
  for each in {" ".join(EXPORTED)}; do
    eval "value=\\${{$each-}}"
    case $each=$value in
      *= | *_proxy=*@* | *_PROXY=*@* | *://*@*) ;;
      *) set -- "$@" "$each=$value" ;;
    esac
  done
  # Nothing else of this environment gets into the job's.
  if [ -n "${{SLURM_JWT-}}" ]; then
    printf '%s\\n' "$SLURM_JWT" | $limit env -i "$@" sh -c '{_SBATCH_FROM_STDIN}' sh "$name" \\
      > "$attempt/out" 2> "$attempt/err"
  else
    $limit env -i "$@" sbatch --parsable --job-name="$name" script.sh \\
      > "$attempt/out" 2> "$attempt/err" < /dev/null
  fi
  code=$?
  made=$(sed -n 's/^\\([0-9][0-9]*\\)\\(;.*\\)*$/\\1/p' "$attempt/out" | tail -n 1)
  if [ "$code" -eq 0 ] && [ -n "$made" ]; then keep "$made" ours; fi
  cat "$attempt/err" "$attempt/out" >&2
  if [ "$code" -eq 0 ] || [ "$code" -ge 124 ]; then exit {SubmitExit.UNSURE}; fi
  if grep -Eqi '{_AMBIGUOUS}' "$attempt/err"; then exit {SubmitExit.UNSURE}; fi
  found=$(look_up) || exit {SubmitExit.UNSURE}
  if [ -n "$found" ]; then keep "$found" theirs; fi
  : > "$attempt/over"
  exit {SubmitExit.REFUSED}
}}

keep() {{
  printf '%s\\n' "$1" > "id.$token" && [ -s "id.$token" ] || exit {SubmitExit.UNSURE}
  ln "id.$token" id 2>/dev/null || [ -s id ] || mv "id.$token" id
  rm -f "id.$token"
  if [ "$(cat id)" != "$1" ] && [ "$2" = ours ]; then undo "$1"; fi
  answer
}}

answer() {{
  for each in stray.[0-9]*; do
    if [ -e "$each" ]; then undo "${{each#stray.}}"; rm -f "$each"; fi
  done
  kept=$(cat id)
  if [ "$kept" = {CANCELLED} ]; then undo ''; exit {SubmitExit.CANCELLED}; fi
  printf '%s\\n' "$kept"
  exit 0
}}

undo() {{
  for pause in 0 1 2; do
    sleep "$pause"
    scancel --user="$(id -un)" --name="$name" ${{1:+"$1"}} >&2 < /dev/null
    left=$(queued {WAITS_OR_RUNS}) || continue
    if ! printf '%s\\n' "$left" | grep -qx "${{1:-[0-9][0-9]*}}"; then return; fi
  done
  if [ -n "$1" ]; then : > "stray.$1"; fi
  echo "scancel did not end array $1; end it by hand: scancel --name=$name $1" >&2
  exit {SubmitExit.UNSURE}
}}

queued() {{
  squeue -h -t "$1" -u "$(id -un)" --name="$name" -o %F < /dev/null
}}

look_up() {{
  jobs=$(queued all) || return 1
  if [ -z "$jobs" ]; then
    jobs=$(sacct -nXP -S now-30days -u "$(id -un)" --name="$name" -o JobID 2>&1 < /dev/null) || {{
      case $jobs in
        *'ccounting storage is disabled'*) jobs= ;;
        *) printf '%s\\n' "$jobs" >&2; return 1 ;;
      esac
    }}
  fi
  printf '%s\\n' "$jobs" | sed -n 's/^\\([0-9][0-9]*\\).*/\\1/p' | sort -n | head -n 1
}}

last_attempt() {{
  n=0
  while [ -d "attempt.$((n + 1))" ]; do n=$((n + 1)); done
  echo "$n"
}}

young() {{
  [ -s "$1/at" ] || date +%s > "$1/at"
  [ $(($(date +%s) - $(cat "$1/at"))) -le {STALE_ATTEMPT_S} ]
}}

main "$@"
"""

#: Standard input becomes script.sh. If the array is known, its id is printed instead.
PUT_SCRIPT = (
    f'{_ENTER}enter "$1"; if [ -s id ]; then cat >/dev/null; cat id; exit; fi; '
    'cat > "script.$3" && [ "$(wc -c < "script.$3")" -eq "$2" ] && mv "script.$3" script.sh'
)

#: Arguments: folder, token, then pairs of name and value. The value becomes the name's ``id`` where
#: it has none. Then the name and its id are printed.
WITHDRAW = (
    f'{_ENTER}enter "$1"; token=$2; shift 2; while [ $# -gt 0 ]; do '
    'mkdir -p "$1" || exit; '
    '[ -s "$1/id" ] || { printf "%s\\n" "$2" > "$1/id.$token" && { '
    'ln "$1/id.$token" "$1/id" 2>/dev/null || [ -s "$1/id" ] || mv "$1/id.$token" "$1/id"; }; '
    'rm -f "$1/id.$token"; }; '
    '[ -s "$1/id" ] || exit 1; printf "%s|%s\\n" "$1" "$(cat "$1/id")"; shift 2; done'
)
#: Cancels this account's arrays of the names.
CANCEL = (
    'code=0; for name in "$@"; do scancel --user="$(id -un)" --name="$name" || code=$?; done; '
    "exit $code"
)

#: Standard input becomes a file, whole or not at all.
PUT_FILE = (
    f'{_ENTER}enter "$1"; cat > "$2.$4" && [ "$(wc -c < "$2.$4")" -eq "$3" ] && '
    'mv "$2.$4" "$2" || { rm -f "$2.$4"; exit 1; }'
)
#: Whether the file of this SHA-256 exists; false where no program here can compute the sum.
HAS_FILE = (
    f'{_ENTER}enter "$1"; [ -f "$2" ] && '
    'found=$({ sha256sum || shasum -a 256 || openssl dgst -sha256 -r; } < "$2" 2>/dev/null) && '
    '[ "${found%% *}" = "$3" ]'
)
#: The last lines of a file; nothing where there is none.
TAIL = 'cd "$1" 2>/dev/null && [ -f "$2" ] && tail -n "$3" "$2" || true'
#: Also removes other users' access to folders that earlier releases left open: that of jobs, and
#: those in it.
MAKE_FOLDER = (
    f'{_ENTER}enter "$1"; base=$(pwd -P); if [ -d jobs ]; then enter jobs; chmod 700 . || exit; '
    'find . -type d -path "./*" -prune -perm -020 -exec chmod g-w {} +; fi; '
    'printf "%s\\n" "$base"'
)
#: Writes and removes a file; prints the folder and its file system.
TRY_FOLDER = (
    f'{_ENTER}enter "$1"; : > ".tried.$2" && rm ".tried.$2" && pwd -P && '
    "{ stat -f -c %T . 2>/dev/null || echo; }"
)


#: The first line of a script for a shell that knows ``if [ … ]``.
_SHELL = re.compile(r"#!\s*(/\S*/)?(env\s+(-S\s+)?)?(/\S*/)?(ba|da|k|z)?sh(\s|$)")
#: Slurm starts a script where it was submitted: in the submission's folder. A cancelled script
#: exits as if ended by TERM, because it has not done its work. A token for sbatch is removed.
_GUARD = (
    "unset SLURM_JWT; "
    f'if [ "$(cat "${{SLURM_SUBMIT_DIR:-.}}/id" 2>/dev/null)" = {CANCELLED} ]; then exit 143; fi'
)


def guarded(script: str) -> str:
    """`script` with a guard: it ends before its first command if its submission was cancelled.

    A script for another interpreter than a shell stays unchanged, and so does one with the guard.
    """
    lines = script.split("\n")
    if not _SHELL.match(lines[0]) or _GUARD in lines:
        return script
    position = first_command(lines)
    return "\n".join([*lines[:position], _GUARD, *lines[position:]])


def first_command(lines: Sequence[str]) -> int:
    """The position of a script's first command; sbatch reads no directive behind it."""
    others = ("", "#")
    return next((n for n, line in enumerate(lines) if line.strip()[:1] not in others), len(lines))


def one_line(program: str, *arguments: str) -> str:
    """`program` as one command, for any login shell of the account."""
    return shlex.join(["sh", "-c", program, "sh", *arguments])


def from_stdin(*arguments: str) -> str:
    """The command that runs a program given on standard input."""
    return shlex.join(["sh", "-s", "--", *arguments])
