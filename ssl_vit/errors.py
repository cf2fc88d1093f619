"""The one exception for mistakes a user can fix; the command line prints it as two lines and exits
with code 2.
"""

import errno
import os
import re

_LONGEST_LINE = 1000

OF_DISKS = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "delete what is not needed, or ask for a larger quota",
    errno.EROFS: "use a writable folder",
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EIO: "check the disk or its server, which failed",
    errno.ESTALE: "check its file server, which lost it",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOTDIR: "give another path",
}
"""Remedies for errors of a file system, by `errno`."""
# A file system is often read-only on one node alone.
_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)


class UserError(ValueError):
    """A mistake a user can fix: what is wrong and what to do about it, one line each.

    Args:
        problem: What was found and what was expected, naming the file, option or config path.
        remedy: What to type or change next.
        may_pass: Whether the same command may work later, so that a job tries again.
    """

    def __init__(self, problem: str, remedy: str, may_pass: bool = False) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.may_pass = may_pass

    @property
    def two_lines(self) -> str:
        """The printed form: control characters and bytes that are not text are escaped, very long
        lines are cut.
        """
        return f"error: {one_line(self.problem)}\nfix:   {one_line(self.remedy)}"

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, bool]]:
        # Exceptions are rebuilt from `args` when they cross a process boundary.
        return (UserError, (self.problem, self.remedy, self.may_pass))


def refuse_control_characters(what: str, text: str, remedy: str) -> None:
    """Refuse a name that a terminal, a script or a scheduler would misread.

    Raises:
        UserError: It contains a line break or another control character.
    """
    if found := re.search(r"[\x00-\x1f\x7f]", text):
        raise UserError(f"{what} contains the control character {found[0]!r}", remedy)


def disk_error(error: OSError) -> UserError | None:
    """The user's error for a full, read-only or failing disk or an impossible path; None for an
    error of another kind.
    """
    remedy = OF_DISKS.get(error.errno or 0)
    if remedy is None:
        return None
    name = error.filename
    place = f"{os.fsdecode(name) if isinstance(name, str | bytes) else name}: " if name else ""
    may_pass = error.errno in _TRANSIENT
    again = ", and run the same command again" if may_pass else ""
    return UserError(f"{place}{error.strerror}", f"{remedy}{again}", may_pass)


def one_line(text: str) -> str:
    """A text for the terminal: control characters are escaped, what is too long is cut."""
    text = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"
    # A lone surrogate is a byte of a file name that is not UTF-8.
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in plain)
