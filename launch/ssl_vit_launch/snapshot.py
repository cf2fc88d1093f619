"""A snapshot of the code beside a run: commit, uncommitted changes, and a copy that can run."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import ssl_vit
from ssl_vit.errors import UserError
from ssl_vit.run.environment import commit_of

_PACKAGES = ("ssl_vit", "ssl_vit_launch", "ssl_vit_data_prep", "ssl_vit_eval")


def take_snapshot(folder: Path) -> None:
    """Copy the four packages into a folder, with `commit.txt`, and `diff.patch` if files differ
    from the commit.

    Args:
        folder: Replaced if it exists.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, source in find_packages().items():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    found = commit_of(Path(ssl_vit.__file__).parent)
    if not found:
        (folder / "commit.txt").write_text(f"not a git checkout; ssl-vit {ssl_vit.__version__}\n")
        return
    (folder / "commit.txt").write_text(f"{found['commit']}\n")
    if found["dirty"]:
        (folder / "diff.patch").write_bytes(_difference(Path(ssl_vit.__file__).parent))


def find_packages() -> dict[str, Path]:
    """Folders of the four packages."""
    found = {}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(f"{name} is not installed", "pip install ssl-vit")
        found[name] = Path(spec.origin).parent
    return found


def _difference(checkout: Path) -> bytes:
    """The uncommitted changes, untracked files included."""
    git = ("git", "-C", str(checkout))
    root = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, check=True)
    git = ("git", "-C", root.stdout.decode().strip())
    tracked = subprocess.run([*git, "diff", "HEAD", "--binary"], capture_output=True, check=True)
    new = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard", "-z", "--", "*.py", "*.toml"],
        capture_output=True,
        check=True,
    )
    parts = [tracked.stdout]
    for name in filter(None, new.stdout.split(b"\0")):
        # Exit code 1 means that the files differ.
        added = subprocess.run(
            [*git, "diff", "--no-index", "--binary", "/dev/null", name.decode()],
            capture_output=True,
            check=False,
        )
        parts.append(added.stdout)
    return b"".join(parts)
