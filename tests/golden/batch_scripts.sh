### apptainer.yaml, 4 nodes

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --job-name='my run'
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/my run/jobs/001/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
module load apptainer
must $? 'module load apptainer'
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
job_folders=(
  '/shared/runs/my run/jobs/001'
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=4 --distribution=block --cpus-per-task=16 apptainer exec --nv --bind /project --bind /scratch /project/images/ssl-vit.sif sh -c 'shift; exec python3 "$@"' sh PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code

### example.yaml, 4 nodes

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=12
#SBATCH --gpus-per-node=8
#SBATCH --job-name='my run'
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/my run/jobs/001/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
job_folders=(
  '/shared/runs/my run/jobs/001'
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=8 --distribution=block --cpus-per-task=12 PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code

### infiniband.yaml, 4 nodes

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --job-name='my run'
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/my run/jobs/001/%j_0_log.out'
#SBATCH --partition=dgx
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5_0,mlx5_3,mlx5_4,mlx5_5
export NCCL_CROSS_NIC=0
export NCCL_IB_TIMEOUT=22
export NCCL_DEBUG=WARN
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
job_folders=(
  '/shared/runs/my run/jobs/001'
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=8 --distribution=block --cpus-per-task=16 --cpu-bind=none PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code

### pyxis.yaml, 4 nodes

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=14
#SBATCH --gpus-per-node=8
#SBATCH --job-name='my run'
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/my run/jobs/001/%j_0_log.out'
#SBATCH --partition=batch
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
job_folders=(
  '/shared/runs/my run/jobs/001'
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=8 --distribution=block --cpus-per-task=14 --container-image=/lustre/images/ssl-vit.sqsh --container-mounts=/lustre:/lustre --no-container-mount-home sh -c 'shift; exec python3 "$@"' sh PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code

### single-gpu.yaml, 4 nodes

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name='my run'
#SBATCH --mem=64GB
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/my run/jobs/001/%j_0_log.out'
#SBATCH --partition=preempt
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=240

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
job_folders=(
  '/shared/runs/my run/jobs/001'
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=1 --distribution=block --cpus-per-task=8 PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code

### with-accounts.yaml, 4 nodes

#!/bin/bash

# Parameters
#SBATCH --account=IscrC_MYPROJ
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=8
#SBATCH --exclude='node[013,207]'
#SBATCH --gpus-per-node=4
#SBATCH --job-name='my run'
#SBATCH --mail-type=FAIL
#SBATCH --mail-user=me@example.org
#SBATCH --mem=480GB
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/my run/jobs/001/%j_0_log.out'
#SBATCH --partition=boost_usr_prod
#SBATCH --qos=boost_qos_dbg
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1380

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
module load cuda/12.2
must $? 'module load cuda/12.2'
export HF_HUB_OFFLINE=1
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
job_folders=(
  '/shared/runs/my run/jobs/001'
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=4 --distribution=block --cpus-per-task=8 PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code

### 2 to 4 nodes, from a snapshot

#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=32
#SBATCH --job-name=r
#SBATCH --nodes=2-4
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/r/jobs/001/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
must() {
  [ $1 -eq 0 ] && return
  echo "error: this line of the cluster profile failed: $2"
  echo "fix:   try it on a node; then  ssl-vit launch resubmit"
  exit 2
}
# Set by sbatch; they would contradict srun's own options.
unset SLURM_TRES_PER_TASK SLURM_CPUS_PER_TASK
export PYTHONSAFEPATH=1  # keeps the submission directory off sys.path
export PYTHONPATH=/shared/code${PYTHONPATH:+:$PYTHONPATH}
job_folders=(
  /shared/runs/r/jobs/001
)
job_folder=${job_folders[${SLURM_ARRAY_TASK_ID:-0}]}
job_history=$job_folder/history.jsonl
# A job of an array by its own id: to scontrol the bare number is the whole array.
this_job=$SLURM_JOB_ID
[ -z "$SLURM_ARRAY_JOB_ID" ] || this_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
refusals() { cat "$job_folder"/history*.jsonl 2> /dev/null | grep -c '^{"kind": "refused"'; }
refusals_before=$(refusals)
srun --nodes=$SLURM_JOB_NUM_NODES --ntasks=$SLURM_JOB_NUM_NODES --ntasks-per-node=1 --cpus-per-task=1 sh -c '[ -d "$0" ] || { echo "error: node $SLURMD_NODENAME does not see $0"; echo "fix:   choose a --run folder on a file system that all nodes share"; exit 2; }' "$job_folder"
[ $? -ne 2 ] || exit 2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/r/jobs/001/%j_%t_log.out --kill-on-bad-exit=1 --ntasks-per-node=4 --distribution=block --cpus-per-task=8 PYTHON -u -m submitit.core._submit /shared/runs/r/jobs/001


# teardown
code=$?
# Complete, or an error that another start would repeat:
[ $code -eq 0 ] || [ $(refusals) -gt $refusals_before ] && exit $code
# Ended by SLURM, which handles it:
for pause in 5 30 0; do
  state=$(scontrol show job "$this_job") && break; sleep $pause
done
echo "$state" | grep -q JobState=RUNNING || exit $code
# 75 140: stopped by a signal. Anything else is a crash, including a SIGTERM before
# training started, since srun sends one when another process has failed.
if [[ " 75 140 " != *" $code "* ]]; then
  # On a new line, if a kill truncated the last one. Seconds are rounded up: the crash
  # comes after the events of the processes.
  [ -z "$(tail -c 1 "$job_history" 2> /dev/null)" ] || echo >> "$job_history"
  printf '{"kind": "crashed", "job": "%s", "time": %s, "code": %s}\n' "$this_job" $(($(date +%s) + 1)) $code >> "$job_history" || exit $code
fi
# Crashes since the last start from a newer checkpoint than the start before it:
crashes=0 reached=-1
while read -r line; do
  case $line in
    '{"kind": "crashed"'*) crashes=$((crashes + 1)) ;;
    '{"kind": "started"'*)
      step=${line#*'"step": '}; step=${step%%[!0-9]*}
      [ -n "$step" ] || continue  # truncated
      [ "$step" -gt "$reached" ] && crashes=0
      reached=$step ;;
  esac
done < "$job_history"
[ $crashes -ge 3 ] || scontrol requeue "$this_job"
exit $code
