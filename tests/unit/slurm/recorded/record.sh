#!/bin/sh
# Records what a cluster's Slurm prints, for ../test_recorded.py: record.sh FOLDER
# Wants an account `few` with MaxSubmitJobs=2 and `lab` without; takes about two minutes.
set -u
mkdir -p "$1" && cd "$1" || exit
script=$(mktemp)
cat > "$script" <<'END'
#!/bin/sh
case $SLURM_ARRAY_TASK_ID in
  1) exit 3 ;;
  2|3) exec sleep 300 ;;
  4) exec sleep 290 ;;
esac
END
submit() { sbatch --parsable --account=lab -o /dev/null "$@" "$script"; }

sbatch --version > version
scontrol show config | grep '^MaxArraySize' > config
job=$(submit --array=0-4 --requeue --time=1)
held=$(submit --array=0-7%2 --hold)
sleep 8
scancel "${job}_2"
scontrol requeue "${job}_3"
sleep 4
squeue -h -r -t all -j "$job,$held" -o '%i|%T|%N|%r' > queue
squeue -h -t all -j "$held" -o '%i|%T|%N|%r' > queue-short
sacct -nXP -j "$job,$held" -o JobID,State,NodeList,ExitCode > records
submit --partition=nope 2> refused-partition
submit --array=0-5000000 2> refused-array
sbatch --parsable --account=few --array=0-9 -o /dev/null "$script" 2> refused-limit
squeue -h -j 999999 2> squeue-unknown
scancel 999999 2> scancel-unknown
scancel "${job}_0" 2> scancel-ended
sleep 110
sacct -nPD -j "$job" -o JobID,State,ExitCode,NodeList,Elapsed,MaxRSS,ReqMem,AllocCPUS > endings
sacct -nPD -j "$job" -o JobID,State,Elapsed,AllocCPUS,TotalCPU,ReqMem,MaxRSS > usage
scancel "$job" "$held"
rm -f "$script"
