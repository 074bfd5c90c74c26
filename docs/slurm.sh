#!/usr/bin/env bash
# A template for several machines under Slurm: two nodes of eight GPUs, one launcher a node.
# A run that is stopped (time limit, preemption) keeps its step; submit the same script again and it goes on.
#SBATCH --job-name=bevkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500

srun uv run bevkd run distillbev --teacher centerpoint --student bevdet \
  --dataset nuscenes --data-root /data/nuscenes --nodes "$SLURM_NNODES" --gpus 8
