"""The one exception for mistakes a user can mend; the command line prints it as two lines and
exits with 2.
"""

_LONGEST_LINE = 1000


class UserError(ValueError):
    """What is wrong, and what to do about it, each in one line.

    Args:
        problem: What was found and what was expected, naming the file, option or config path.
        remedy: What to type or change next.
        may_pass: Whether the same command may work in a while: a job tries again.
    """

    def __init__(self, problem: str, remedy: str, may_pass: bool = False) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.may_pass = may_pass

    @property
    def two_lines(self) -> str:
        """As it is printed: control characters and bytes that are not text spelled out, each line
        cut where it is longer than anybody reads.
        """
        return f"error: {_one_line(self.problem)}\nfix:   {_one_line(self.remedy)}"

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, bool]]:
        # Exceptions are rebuilt from `args` when they cross a process boundary.
        return (UserError, (self.problem, self.remedy, self.may_pass))


def _one_line(text: str) -> str:
    text = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"
    # A lone surrogate is a byte of a file name that is not UTF-8.
    plain = text.encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in plain)
