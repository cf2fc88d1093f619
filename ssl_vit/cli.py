"""`ssl-vit`: one command. Sub-commands are entry points, imported only when called or listed.

Command modules import nothing slow at their top; `ssl-vit --help` answers on a login node in a
moment.
"""

import io
import os
import select
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from ssl_vit.distributed import leave
from ssl_vit.errors import UserError, disk_error

GROUP = "ssl_vit.commands"


# click's class; newer versions of typer bundle click.
_UsageError: Any = typer.BadParameter.__bases__[0]
_INTERRUPTED = 130  # typer's exit code after Ctrl-C
_BROKEN_PIPE = 141  # a shell's exit code after SIGPIPE


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


class EntryPointGroup(TyperGroup):
    """A command group whose members are looked up among the installed entry points."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command. Typer mistakes every broken pipe for a closed output and stays silent."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if _no_one_reads():
                sys.exit(_flush(0) or _BROKEN_PIPE)
            raise RuntimeError("a process that this one communicates with has ended") from error

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_entry_points())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = _entry_points().get(cmd_name)
        if entry is None:
            return None
        loaded = entry.load()
        if isinstance(loaded, typer.Typer):
            command = typer.main.get_command(loaded)
        else:
            single = typer.Typer(add_completion=False)
            single.command()(loaded)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=EntryPointGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Pre-train Vision Transformers on your own images, without labels.",
)


@app.callback()
def root() -> None:
    """Pre-train Vision Transformers on your own images, without labels."""


def check_words(words: Sequence[str]) -> None:
    """Parse a command line as `ssl-vit` would, without running it.

    Args:
        words: The arguments after `ssl-vit`.

    Raises:
        UserError: A command or option is unknown or missing.
    """
    command: Any = typer.main.get_command(app)
    name, rest, context = "ssl-vit", list(words), None
    try:
        context = command.make_context(name, [*rest], parent=context)
        while isinstance(command, TyperGroup):
            name, command, rest = command.resolve_command(context, rest)
            context = command.make_context(name, [*rest], parent=context)
    except _UsageError as error:
        raise _usage_mistake(error) from None


def _usage_mistake(error: Any) -> UserError:
    problem = " ".join(error.format_message().split())
    command = error.ctx.command_path if error.ctx else "ssl-vit"
    return UserError(problem, f"{command} --help  lists commands and options")


def main() -> None:
    """Run the command line; a user's mistake is two lines and exit code 2, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not support UTF-8
    try:
        code = app(standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(2)
        mistake = _usage_mistake(error)
        print(mistake.two_lines, file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        # Every process of a machine finds the same mistake; one of them reports it.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(error.two_lines, file=sys.stderr)
        code = 2
    except OSError as error:
        if (mistake := disk_error(error)) is None:
            raise
        print(mistake.two_lines, file=sys.stderr)  # by every process: it may be one node's disk
        code = 2
    if code == _INTERRUPTED:
        print("interrupted: run the same command again to resume", file=sys.stderr)
    code = _flush(code if isinstance(code, int) else 0)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        leave(code)
    sys.exit(code)


def _no_one_reads() -> bool:
    """Whether standard output is a pipe whose reader has ended."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return bool(poll.poll(0))


def _flush(code: int) -> int:
    """Flush standard output; returns the exit code."""
    if sys.stdout is None:  # closed by the shell
        return code
    try:
        sys.stdout.flush()
        return code
    except OSError as error:
        # Discard all further output, including the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code or _BROKEN_PIPE
        mistake = disk_error(error) or UserError(
            f"cannot write the output: {error.strerror}", "write it elsewhere"
        )
        print(mistake.two_lines, file=sys.stderr)
        return 2


if __name__ == "__main__":
    main()
