"""The one exception for mistakes a user can mend; the command line prints it as two lines and
exits with 2.
"""


class UserError(ValueError):
    """What is wrong, and what to do about it, each in one line.

    Args:
        problem: What was found and what was expected, naming the file, option or config path.
        remedy: What to type or change next.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str]]:
        # Exceptions are rebuilt from `args` when they cross a process boundary; ours has two.
        return (UserError, (self.problem, self.remedy))
