#!/bin/sh
# Predicts a cohort as a Slurm array, one shard a task; a task that is requeued continues where it was stopped.
#   COHORT=cohort BUNDLE=bundle OUT=parts sbatch --array=1-10 slurm-array.sh
#SBATCH --job-name=tmi-predict
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --cpus-per-task=2
tmi predict "$COHORT" --bundle "$BUNDLE" --engine "${ENGINE:-openvino}" --threads "$SLURM_CPUS_PER_TASK" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --resume -o "$OUT/part.$SLURM_ARRAY_TASK_ID.jsonl" > /dev/null
code=$?
# A rejected case (3) is a result; repeating the task would not change it.
if [ $code -eq 3 ]; then exit 0; fi
exit $code
