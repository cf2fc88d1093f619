"""The two configuration files of Slurm's daemons, for a cluster on one machine and in one folder.

Like Slurm itself, the daemons listen on the address of the machine's name: the loopback, if
/etc/hosts says so.
"""

import contextlib
import secrets
import socket
from pathlib import Path

# NoInAddrAny twice: otherwise all daemons listen on every interface.
# cred_expire: a requeued job waits for its old credential to expire; the default is 120 s, and
# values below 5 are ignored.
# config_overrides: a node may have more CPUs than the machine.
SLURM_CONF = """\
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""

NODE = """\
NodeName={node} NodeHostname={host} NodeAddr={address} Port={port} CPUs={cpus} RealMemory=4000
"""

PARTITIONS = """\
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE PriorityTier=1
PartitionName=low Default=YES PreemptMode=REQUEUE GraceTime=15
PartitionName=high PriorityTier=10
PartitionName=short MaxTime=5 MaxNodes=1
"""

NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none\n"

# The connection to slurmdbd ignores AuthInfo, hence the last line.
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.socket
"""

SLURMDBD_CONF = """\
DbdHost={host}
DbdAddr={address}
DbdPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageUser=root
StorageHost=localhost
StorageLoc=slurm
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
"""


def write_slurm_conf(
    folder: Path,
    name: str,
    *,
    port: int,
    node_ports: dict[str, int],
    cpus: int,
    database_port: int | None,
    enforce_accounts: bool,
) -> None:
    """Write the configuration of all daemons and commands.

    Args:
        folder: Folder for the file and all files that it names.
        name: Name of the cluster.
        port: Port of the controller.
        node_ports: Node → port.
        cpus: CPUs per node.
        database_port: Port of slurmdbd; None: no accounting.
        enforce_accounts: Refuse jobs of accounts that do not exist.
    """
    place = {"folder": folder, "host": short_name(), "address": own_address()}
    parts = [SLURM_CONF.format(**place, name=name, port=port)]
    parts += [ACCOUNTING.format(**place, port=database_port) if database_port else NO_ACCOUNTING]
    parts += ["AccountingStorageEnforce=associations\n"] if enforce_accounts else []
    parts += [
        NODE.format(**place, node=node, port=node_port, cpus=cpus)
        for node, node_port in node_ports.items()
    ]
    (folder / "slurm.conf").write_text("".join([*parts, PARTITIONS]))


def write_slurmdbd_conf(folder: Path, port: int) -> None:
    """Write the configuration of slurmdbd, which refuses a file that others may read."""
    file = folder / "slurmdbd.conf"
    file.touch(0o600)
    place = {"folder": folder, "host": short_name(), "address": own_address()}
    file.write_text(SLURMDBD_CONF.format(**place, port=port))


def short_name() -> str:
    """Name of this machine as Slurm uses it."""
    return socket.gethostname().partition(".")[0]


def own_address() -> str:
    """Address of this machine's name.

    Raises:
        OSError: It has none.
    """
    return socket.gethostbyname(short_name())


def free_ports(count: int) -> list[int]:
    """Free ports below the kernel's range for outgoing connections, which could take one."""
    ports: list[int] = []
    while len(ports) < count:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports += [port] if port not in ports else []
    return ports
