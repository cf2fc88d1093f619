"""Which tests pytest-xdist keeps together when several processes run them (`pytest -n 2`)."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling


class WholeFiles(LoadFileScheduling):
    """File by file, since much of what a file's tests share is slow to make; all on Slurm in one
    process, since jobs of two clusters have the same numbers, which give them the same ports.
    """

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        # As collected: by number of tests, the few that take minutes would come last.
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "tests/slurm" if file.startswith("tests/slurm/") else file
