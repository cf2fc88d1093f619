"""A Slurm cluster on this machine, for tests: real daemons with all files in one folder.

    python -m tests.slurm.cluster up [--folder DIR] [--nodes 2] [--no-accounting]
    python -m tests.slurm.cluster down [--folder DIR]

All nodes are this host and share its name; `$SLURMD_NODENAME` distinguishes them. Processes are
found by their environment, not by pid files or names, so that a broken cluster is removed
completely and no other process is touched.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import zlib
from pathlib import Path

from tests.slurm.configuration import (
    free_ports,
    own_address,
    write_slurm_conf,
    write_slurmdbd_conf,
)
from tests.slurm.processes import PATIENCE, environments, kill, wait_until

FOLDER = Path("/tmp/ssl-vit-slurm")

# Not every shell has the daemons' folders on its path.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

BINARIES = ("munged", "mungekey", "slurmctld", "slurmd", "srun", "sbatch", "setsid")
ACCOUNTING_BINARIES = ("mariadb-install-db", "mariadbd", "slurmdbd", "sacct", "sacctmgr")

# A file that tells `start` that it may empty a folder.
SIGN = "made-by-tests.slurm.cluster"

# In characters: a socket's path has at most 107, and slurmd's need 35 below the folder.
LONGEST_FOLDER = 72

# In the environment of every daemon: the folder it belongs to, and its name or its node's.
FOLDER_MARK = "SSL_VIT_SLURM_FOLDER"
ROLE_MARK = "SSL_VIT_SLURM_ROLE"

# A throwaway database: small, and it never waits for the disk.
DATABASE = (
    "--no-defaults",
    "--user=root",
    "--debug-no-sync",
    "--innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-log-file-size=4M",
    "--innodb-buffer-pool-size=32M",
)


class SlurmUnavailable(Exception):  # noqa: N818 - a reason to skip a test, not an error
    """Why no cluster can be started here."""


class SlurmCluster:
    """Nodes, a controller and optional accounting; a `with` block starts and stops them.

    There are three partitions. ``low`` is the default; when ``high`` needs its nodes, its jobs get
    the signal of their `--signal` at once and are requeued 15 seconds later. ``short`` takes jobs
    of one node and 5 minutes. A batch job starts within a second, a requeued one after 6.

    Args:
        folder: Folder for all files; `start` empties it.
        nodes: Number of nodes, named n1, n2, ….
        cpus: CPUs per node; may be more than the machine has.
        accounting: Whether to start MariaDB and slurmdbd, which `sacct` needs.
        enforce_accounts: Refuse jobs of accounts that do not exist; ``science`` does, and is
            root's where a job names none. Takes a second more to start.
    """

    def __init__(
        self,
        folder: Path = FOLDER,
        *,
        nodes: int = 2,
        cpus: int = 4,
        accounting: bool = True,
        enforce_accounts: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))
        self.cpus, self.accounting, self.enforce_accounts = cpus, accounting, enforce_accounts
        if enforce_accounts and not accounting:
            raise ValueError("enforce_accounts=True needs accounting=True")
        if len(str(self.folder)) > LONGEST_FOLDER or " " in str(self.folder):
            raise ValueError(
                f"{self.folder} cannot hold Slurm's sockets; name a folder whose path has "
                f"no space and at most {LONGEST_FOLDER} characters"
            )

    @property
    def name(self) -> str:
        """Name of the cluster, in `SLURM_CLUSTER_NAME`, derived from the folder."""
        return f"ssl{zlib.crc32(bytes(self.folder)):08x}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which Slurm's commands use this cluster."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the cluster, replacing any previous one in the folder, and wait until it is idle.

        Raises:
            SlurmUnavailable: Slurm is not installed, or this is not root.
            ValueError: The folder has files of another program.
        """
        _check_machine(self.accounting)
        if self.folder.exists() and any(self.folder.iterdir()) and not self._is_ours():
            raise ValueError(f"{self.folder} has files of another program; use an empty folder")
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "log").mkdir(parents=True)
        (self.folder / SIGN).touch()
        try:
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all processes of the cluster and of its jobs; the logs are kept."""
        kill(self._daemons)
        kill(self._job_processes)
        if self._is_ours():
            shutil.rmtree(self.folder / "database", ignore_errors=True)

    def __enter__(self) -> "SlurmCluster":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's environment and wait for it."""
        return subprocess.run(
            [*map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": PATH, **self.environment},
            check=False,
            timeout=PATIENCE,
        )

    def wait_idle(self, seconds: float = PATIENCE) -> None:
        """Wait until every node is up and has no job."""
        wait_until(
            f"{' '.join(self.nodes)} are idle",
            lambda: set(self.run("sinfo", "-h", "-o", "%T").stdout.split()) == {"idle"},
            seconds,
        )

    def kill_node(self, node: str) -> None:
        """Kill a node as in a power failure; the controller notices after 20 to 30 seconds."""
        # Slurm's daemons first, so that none can report how the tasks ended.
        kill(lambda: self._daemons(node))
        kill(lambda: self._job_processes(node))

    def start_node(self, node: str) -> None:
        """Start the daemon of a node; it accepts jobs a moment later."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._spawn("slurmd", "-N", node, "-f", str(self.folder / "slurm.conf"), role=node)

    def wipe(self) -> None:
        """Forget all jobs, so that ids restart at 1; accounting keeps its records."""
        for node in self.nodes:
            self.kill_node(node)
            # A slurmd remembers ids whose credentials it has revoked.
            shutil.rmtree(self.folder / f"spool-{node}")
        kill(lambda: self._daemons("slurmctld"))
        shutil.rmtree(self.folder / "state")
        self._start_controller_and_nodes()

    def tasks(self, job_id: int | str) -> dict[str, list[int]]:
        """Node → ids of the processes that `srun` started there for a job, not its batch script."""
        found: dict[str, list[int]] = {}
        for pid, variables in environments().items():
            is_step = variables.get("SLURM_JOB_ID") == str(job_id) and "SLURM_STEP_ID" in variables
            if is_step and self._is_of_a_job(variables):
                found.setdefault(variables["SLURMD_NODENAME"], []).append(pid)
        return found

    def _is_ours(self) -> bool:
        return (self.folder / SIGN).exists()

    def _is_of_a_job(self, variables: dict[str, str]) -> bool:
        # A shell opened by `salloc` has the name of the cluster as well, but is not on a node.
        return variables.get("SLURM_CLUSTER_NAME") == self.name and "SLURMD_NODENAME" in variables

    def _job_processes(self, node: str | None = None) -> list[int]:
        return [
            pid
            for pid, variables in environments().items()
            if self._is_of_a_job(variables) and node in (None, variables["SLURMD_NODENAME"])
        ]

    def _daemons(self, role: str | None = None) -> list[int]:
        return [
            pid
            for pid, variables in environments().items()
            if variables.get(FOLDER_MARK) == str(self.folder)
            and role in (None, variables.get(ROLE_MARK))
        ]

    def _start_daemons(self) -> None:
        controller, database, *nodes = free_ports(2 + len(self.nodes))
        write_slurm_conf(
            self.folder,
            self.name,
            port=controller,
            node_ports=dict(zip(self.nodes, nodes, strict=True)),
            cpus=self.cpus,
            database_port=database if self.accounting else None,
            enforce_accounts=self.enforce_accounts,
        )
        self._start_munge()
        if self.accounting:
            self._start_database()
            self._start_slurmdbd(database)
        self._start_controller_and_nodes()
        if self.enforce_accounts:
            user = ("user", "root", "account=science", "defaultaccount=science")
            for words in (("account", "science"), user):
                self._must("sacctmgr", "--immediate", "--quiet", "add", *words)

    def _start_munge(self) -> None:
        folder, key = self.folder, f"--keyfile={self.folder}/munge.key"
        self._must("mungekey", "--create", key)
        self._spawn(
            *("munged", "--force", f"--key-file={folder}/munge.key"),
            *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid"),
            *(f"--seed-file={folder}/munge.seed", f"--log-file={folder}/log/munged.log"),
        )

    def _start_database(self) -> None:
        place = (f"--datadir={self.folder}/database", f"--tmpdir={self.folder}")
        root = "--auth-root-authentication-method=normal"
        self._spawn("mariadb-install-db", *DATABASE, *place, root, "--skip-test-db")
        path = f"{self.folder}/mariadb.socket"
        files = (f"--socket={path}", f"--pid-file={self.folder}/mariadbd.pid")
        self._spawn("mariadbd", *DATABASE, *place, *files, "--skip-networking", fork=True)
        wait_until("MariaDB answers", lambda: _answers(socket.AF_UNIX, path))

    def _start_slurmdbd(self, port: int) -> None:
        write_slurmdbd_conf(self.folder, port)
        self._spawn("slurmdbd")
        wait_until("slurmdbd answers", lambda: _answers(socket.AF_INET, (own_address(), port)))

    def _start_controller_and_nodes(self) -> None:
        (self.folder / "state").mkdir()
        self._spawn("slurmctld", "-c", "-f", str(self.folder / "slurm.conf"))
        wait_until("slurmctld answers", lambda: self.run("scontrol", "ping").returncode == 0)
        for node in self.nodes:
            self.start_node(node)
        self.wait_idle()

    def _spawn(self, *words: str, role: str = "", fork: bool = False) -> None:
        """Run a program that ends or daemonizes; ``fork`` runs others in the background."""
        role = role or words[0]
        said = self.folder / "log" / f"{role}.out"
        with said.open("w") as output:
            code = subprocess.run(
                [*(("setsid", "--fork") if fork else ()), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Slurm overwrites the variables before SLURM_CONF with its process titles.
                env={"PATH": PATH, "MYSQL_UNIX_PORT": f"{self.folder}/mariadb.socket"}
                | self.environment
                | {FOLDER_MARK: str(self.folder), ROLE_MARK: role},
                cwd=self.folder,
                check=False,
                timeout=PATIENCE,
            ).returncode
        if code:
            raise RuntimeError(f"{role} failed, see {said.parent}: {said.read_text()}")

    def _must(self, *words: str) -> None:
        done = self.run(*words)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr or done.stdout}")


def _check_machine(accounting: bool) -> None:
    for binary in (*BINARIES, *(ACCOUNTING_BINARIES if accounting else ())):
        if not shutil.which(binary, path=PATH):
            raise SlurmUnavailable(f"no {binary} here; tests/slurm/install.sh installs it")
    if os.geteuid() != 0:
        raise SlurmUnavailable("Slurm's daemons need root")
    try:
        address = own_address()
    except OSError as error:
        raise SlurmUnavailable(f"the name of this machine has no address: {error}") from error
    # Connections to another loopback address come from 127.0.0.1, where nothing listens.
    if address.startswith("127.") and address != "127.0.0.1":
        raise SlurmUnavailable(f"/etc/hosts has {address} for this machine; Slurm needs 127.0.0.1")


def _answers(family: socket.AddressFamily, address: str | tuple[str, int]) -> bool:
    with socket.socket(family) as probe:
        return probe.connect_ex(address) == 0


def main() -> int:
    """Run one of the two commands in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster")
    commands = parser.add_subparsers(dest="command", required=True)
    up, down = commands.add_parser("up"), commands.add_parser("down")
    for command in (up, down):
        command.add_argument("--folder", type=Path, default=FOLDER)
    up.add_argument("--nodes", type=int, default=2)
    up.add_argument("--no-accounting", dest="accounting", action="store_false")
    said = parser.parse_args()
    try:
        if said.command == "down":
            SlurmCluster(said.folder).stop()
            return 0
        cluster = SlurmCluster(said.folder, nodes=said.nodes, accounting=said.accounting)
        cluster.start()
    except (SlurmUnavailable, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"export SLURM_CONF={cluster.folder}/slurm.conf")
    print(f"# {' '.join(cluster.nodes)} idle; partitions low high short; {cluster.folder}/log")
    return 0


if __name__ == "__main__":
    sys.exit(main())
