"""The one exception for mistakes a user can mend; the command line prints it as two lines and
exits with 2.
"""


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

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, bool]]:
        # Exceptions are rebuilt from `args` when they cross a process boundary.
        return (UserError, (self.problem, self.remedy, self.may_pass))
