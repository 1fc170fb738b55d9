#!/usr/bin/env bash
# Trains on two machines under Slurm. What follows the script's name is the command line of alexnet, the same for every worker:
#
#   sbatch slurm.sh run --workdir /shared/mlruns --dataset /shared/images
#
# `alexnet` must be on the PATH (activate its environment before sbatch), and --workdir on storage that all nodes see.
# The same sbatch again goes on from the last checkpoint.
#
#SBATCH --job-name=alexnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
##SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
# After a lost node or a preemption Slurm itself starts the job anew.
#SBATCH --requeue
# What was printed before that stays.
#SBATCH --open-mode=append
# A minute before the time is over the workers save and end.
#SBATCH --signal=TERM@60
set -euo pipefail

tries=3

if (($# == 0)); then
    echo "Expected alexnet's command line, such as: sbatch slurm.sh run --workdir /shared/mlruns. Received nothing." >&2
    exit 2
fi

# Two jobs that share a node need two ports. Those from 32768 on are Linux's own to give away.
port=$((20000 + SLURM_JOB_ID % 10000))
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
workers=
for node in $nodes; do
    workers+="${workers:+, }\"$node:$port\""
done

# Runs on every node, where SLURM_PROCID is known. `exec`, so that SIGTERM reaches the program.
# shellcheck disable=SC2016 # the variables are those of the node
worker='
    export TF_CONFIG="{\"cluster\": {\"worker\": [$1]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    shift
    exec alexnet "$@"'

for ((try = 1; ; try++)); do
    code=0
    # One lost worker ends all: they can only go on together, from the last checkpoint. srun does not take --cpus-per-task from sbatch.
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c "$worker" worker "$workers" "$@" || code=$?
    if ((code == 0)); then
        exit 0
    fi
    # They ended because the time is over, most likely; too little is left for another start in any case.
    if ((${SLURM_JOB_END_TIME:-0} > 0 && SLURM_JOB_END_TIME - $(date +%s) < 180)); then
        echo "Ended with $code near the end of the job's time. The same sbatch again goes on from the last checkpoint." >&2
        exit "$code"
    fi
    if ((try == tries)); then
        echo "Ended with $code, $tries times." >&2
        exit "$code"
    fi
    echo "Ended with $code. Starting all workers again from the last checkpoint ($((try + 1)) of $tries)." >&2
done
