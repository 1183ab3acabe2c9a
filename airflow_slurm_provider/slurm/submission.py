"""The programs that run on the login node: exactly one array per submission's folder.

`SUBMIT` runs in ``<remote_dir>/jobs/<folder>/<name>/``. The folder's file system decides
who calls ``sbatch``: ``mkdir attempt.<n>`` succeeds for one caller, and n is the fence.
``id`` is hard-linked into place, so the first array noted is *the* array for ever.

| id     | last attempt  | meaning                     | what a caller does                 |
| ------ | ------------- | --------------------------- | ---------------------------------- |
| there  | any           | this is the array           | print it                           |
| absent | none          | nobody has tried            | mkdir attempt.1, sbatch, note id   |
| absent | n, young      | sbatch runs now, or its     | look the name up; found: note id;  |
|        |               | caller was killed           | else wait (exit 92)                |
| absent | n, with       | sbatch refused, there is    | mkdir attempt.<n+1>, look the name |
|        | "over"        | surely no array             | up, then as for none               |
| absent | n, older than | its caller is dead (sbatch  | as for "over"                      |
|        | 90 s          | is ended after 65 s)        |                                    |

Where it may stop, and why there is one array then:

| it stops                       | left behind             | next caller                           |
| ------------------------------ | ----------------------- | ------------------------------------- |
| before mkdir                   | nothing                 | starts afresh                         |
| mkdir … sbatch not reached     | attempt, no array       | finds no name until 90 s; takes over  |
| sbatch reached the controller  | attempt, array          | finds the name in squeue or sacct     |
| id noted, the answer lost      | id                      | reads it                              |

The connection's end stops nothing here: without a terminal sshd sends no signal, and HUP
and PIPE are ignored. A caller that slept through its own take-over (a suspended login
node) may call sbatch late: its link fails, and it cancels the array it made. The name is
looked up in ``sacct`` too, for an array that ended and left the queue; where either
command fails, nothing is decided (exit 93): absence is never guessed from an error. Logs
of workers without any record of them (no accounting, and the queue has forgotten) are
not guessed about either (exit 94).
"""

from __future__ import annotations

import shlex
from enum import IntEnum


class Outcome(IntEnum):
    """How `SUBMIT` exits."""

    KNOWN = 0  #: the array's id is on standard output
    NO_FOLDER = 90  #: the folder can't be entered or written
    REFUSED = 91  #: sbatch refused, and no array of this name exists
    WAIT = 92  #: another caller is at it
    UNSURE = 93  #: Slurm may have the array, and can't say now
    UNTRACEABLE = 94  #: workers have run, and Slurm has no record of them


#: When an attempt without an id is taken over; sbatch is ended well before.
STALE_ATTEMPT_S = 90

#: sbatch's words when the controller may or may not have taken the job.
_AMBIGUOUS = (
    "timed out|timeout|contact slurm controller|zero bytes|connection (refused|reset)|"
    "communication|unexpected message|send failure|recv failure|receive failure"
)

# Portable sh: no GNU options, so that it also runs where the embedded cluster does. It is
# one function called in the last line, so that half a program from a broken connection
# does nothing.
SUBMIT = f"""\
main() {{
  place=$1 name=$2 token=$3
  trap '' HUP PIPE
  cd "$place" || exit {Outcome.NO_FOLDER}
  if [ -s id ]; then cat id; exit 0; fi
  before=$(last_attempt)
  if [ "$before" -gt 0 ] && [ ! -e "attempt.$before/over" ] && young "attempt.$before"; then
    found=$(look_up) || exit {Outcome.WAIT}
    if [ -n "$found" ]; then keep "$found" theirs; fi
    exit {Outcome.WAIT}
  fi
  mine=$((before + 1))
  if [ -d "attempt.$mine" ]; then exit {Outcome.WAIT}; fi
  said=$(mkdir "attempt.$mine" 2>&1) || {{
    if [ -d "attempt.$mine" ]; then exit {Outcome.WAIT}; fi
    printf '%s\n' "$said" >&2
    exit {Outcome.NO_FOLDER}
  }}
  date +%s > "attempt.$mine/at"
  if [ "$before" -gt 0 ]; then
    found=$(look_up) || {{ : > "attempt.$mine/over"; exit {Outcome.UNSURE}; }}
    if [ -n "$found" ]; then keep "$found" theirs; fi
    if ls worker-*.log >/dev/null 2>&1; then
      : > "attempt.$mine/over"; exit {Outcome.UNTRACEABLE}
    fi
  fi
  [ "$(last_attempt)" -eq "$mine" ] || exit {Outcome.WAIT}
  run_sbatch "attempt.$mine"
}}

run_sbatch() {{
  limit=
  if command -v timeout >/dev/null 2>&1; then limit='timeout -k 5 60'; fi
  $limit sbatch --parsable script.sh > "$1/out" 2> "$1/err" < /dev/null
  code=$?
  made=$(sed -n 's/^\\([0-9][0-9]*\\)\\(;.*\\)*$/\\1/p' "$1/out" | tail -n 1)
  if [ "$code" -eq 0 ] && [ -n "$made" ]; then keep "$made" ours; fi
  cat "$1/err" "$1/out" >&2
  if [ "$code" -eq 0 ] || [ "$code" -ge 124 ]; then exit {Outcome.UNSURE}; fi
  if grep -Eqi '{_AMBIGUOUS}' "$1/err"; then exit {Outcome.UNSURE}; fi
  found=$(look_up) || exit {Outcome.UNSURE}
  if [ -n "$found" ]; then keep "$found" theirs; fi
  : > "$1/over"
  exit {Outcome.REFUSED}
}}

keep() {{
  printf '%s\\n' "$1" > "id.$token" && [ -s "id.$token" ] || exit {Outcome.UNSURE}
  ln "id.$token" id 2>/dev/null || [ -s id ] || mv "id.$token" id
  rm -f "id.$token"
  kept=$(cat id)
  if [ "$2" = ours ] && [ "$kept" != "$1" ]; then scancel "$1"; fi
  printf '%s\\n' "$kept"
  exit 0
}}

look_up() {{
  queued=$(squeue -h -t all -u "$(id -un)" --name="$name" -o %F < /dev/null) || return 1
  if [ -z "$queued" ]; then
    queued=$(sacct -nXP -S now-30days --name="$name" -o JobID 2>&1 < /dev/null) || {{
      case $queued in
        *'ccounting storage is disabled'*) queued= ;;
        *) printf '%s\\n' "$queued" >&2; return 1 ;;
      esac
    }}
  fi
  printf '%s\\n' "$queued" | sed -n 's/^\\([0-9][0-9]*\\).*/\\1/p' | sort -n | head -n 1
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

#: Standard input becomes script.sh, unless the array is known: then its id is printed.
PUT_SCRIPT = (
    'mkdir -p "$1" && cd "$1" || exit; if [ -s id ]; then cat >/dev/null; cat id; exit; fi; '
    'cat > "script.$3" && [ "$(wc -c < "script.$3")" -eq "$2" ] && mv "script.$3" script.sh'
)

#: Standard input becomes a file, whole or not at all.
PUT_FILE = (
    'cd "$1" && cat > "$2.$4" && [ "$(wc -c < "$2.$4")" -eq "$3" ] && mv "$2.$4" "$2" '
    '|| { rm -f "$2.$4"; exit 1; }'
)
#: The same, for a file that only its owner may read.
PUT_SECRET = f'umask 077; mkdir -p "$1" && {PUT_FILE}'
HAS_FILE = 'cd "$1" && [ -f "$2" ] && [ "$(wc -c < "$2")" -eq "$3" ]'
#: The last lines of a file; nothing where there is none.
TAIL = 'cd "$1" 2>/dev/null && [ -f "$2" ] && tail -n "$3" "$2" || true'
MAKE_FOLDER = 'mkdir -p "$1" && cd "$1" && pwd'


def one_line(program: str, *arguments: str) -> str:
    """`program` as one command, whatever the account's login shell is."""
    return shlex.join(["sh", "-c", program, "sh", *arguments])


def from_stdin(*arguments: str) -> str:
    """The command that runs a program given on standard input."""
    return shlex.join(["sh", "-s", "--", *arguments])
