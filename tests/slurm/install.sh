#!/usr/bin/env bash
# Debian's packages for the one-machine Slurm of the tests; does nothing where they are installed.
set -euo pipefail

binaries=(munged mungekey slurmctld slurmd slurmdbd srun sbatch sacct sacctmgr mariadbd mariadb-install-db)
packages=(munge slurmctld slurmd slurm-client slurmdbd slurm-wlm-basic-plugins mariadb-server)

PATH=$PATH:/usr/sbin:/sbin
missing() { for binary in "${binaries[@]}"; do command -v "$binary" >/dev/null || echo "$binary"; done; }
refuse() { echo "install.sh: $1" >&2; exit 1; }

[ -n "$(missing)" ] || exit 0
[ "$(id -u)" = 0 ] || refuse "Slurm is not installed, and installing it needs root"
command -v apt-get >/dev/null || refuse "Slurm is not installed, and there is no apt-get to install it"

export DEBIAN_FRONTEND=noninteractive
apt() { said=$(apt-get -qq -o DPkg::Lock::Timeout=120 "$@" 2>&1) || refuse "apt-get $1: ${said##*$'\n'}"; }
apt update
apt install -y --no-install-recommends "${packages[@]}"
[ -z "$(missing)" ] || refuse "the packages lack $(missing | tr '\n' ' ')"
