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
module load apptainer

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=4 --cpus-per-task=16 apptainer exec --nv --bind /project --bind /scratch /project/images/ssl-vit.sif sh -c 'shift; exec python3 "$@"' sh PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
logs='/shared/runs/my run/jobs/001'
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=8 --cpus-per-task=12 PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
logs='/shared/runs/my run/jobs/001'
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
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
export GLOO_SOCKET_IFNAME=ib0
export NCCL_SOCKET_IFNAME=ib0
export NCCL_IB_HCA=mlx5_0,mlx5_3,mlx5_4,mlx5_5
export NCCL_CROSS_NIC=0
export NCCL_IB_TIMEOUT=22
export NCCL_DEBUG=WARN

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=8 --cpus-per-task=16 --cpu-bind=none PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
logs='/shared/runs/my run/jobs/001'
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=8 --cpus-per-task=14 --container-image=nvcr.io/nvidia/pytorch:25.06-py3 --container-mounts=/lustre:/lustre --no-container-mount-home sh -c 'shift; exec python3 "$@"' sh PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
logs='/shared/runs/my run/jobs/001'
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
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

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=1 --cpus-per-task=8 PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
logs='/shared/runs/my run/jobs/001'
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
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
module load cuda/12.2
module load python/3.11
source $HOME/venvs/ssl-vit/bin/activate
export HF_HUB_OFFLINE=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/shared/runs/my run/jobs/001/%j_%t_log.out' --kill-on-bad-exit=1 --ntasks-per-node=4 --cpus-per-task=8 PYTHON -u -m submitit.core._submit '/shared/runs/my run/jobs/001'


# teardown
code=$?
logs='/shared/runs/my run/jobs/001'
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
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
export PYTHONPATH=/shared/code${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /shared/runs/r/jobs/001/%j_%t_log.out --kill-on-bad-exit=1 --ntasks-per-node=4 --cpus-per-task=8 PYTHON -u -m submitit.core._submit /shared/runs/r/jobs/001


# teardown
code=$?
logs=/shared/runs/r/jobs/001
index=${SLURM_ARRAY_TASK_ID:-0}
# Complete; a mistake that another start would repeat; ended by SLURM, who knows why:
[ $code -eq 0 ] || [ -e "$logs/refused_$index" ] && exit $code
scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING || exit $code
# 75: asked to stop by a signal to a process, and saved. Else it is a crash.
if [ $code -ne 75 ]; then
  echo "$code $(date +%s)" >> "$logs/all_crashes_$index"
  echo "$code" >> "$logs/crashes_$index"
fi
[ ! -e "$logs/crashes_$index" ] || crashes=$(wc -l < "$logs/crashes_$index")
[ "${crashes:-0}" -ge 3 ] || scontrol requeue "$SLURM_JOB_ID"
exit $code
