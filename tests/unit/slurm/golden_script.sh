#!/bin/bash
#SBATCH --job-name=flights-2013.r0s1.0a1b2c
#SBATCH --array=0-39%10
#SBATCH --output=worker-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@180
#SBATCH --partition=main
#SBATCH --time=02:00:00
#SBATCH --mem=2G
#SBATCH --cpus-per-task=4
#SBATCH --gres=gpu:1
#SBATCH '--comment=it'"'"'s the "first" run'

umask 077
export AWS_DEFAULT_REGION=eu-west-1
export NOTE='two words'
[ -z "${MODULESHOME-}" ] || type module >/dev/null 2>&1 || . "$MODULESHOME/init/bash"
module load python/3.12
exec srun --ntasks=1 --cpus-per-task=4 --kill-on-bad-exit=1 python3 /home/lab/.airflow-slurm/worker-00ff.pyz run --config s3://b/k
