"""Create the virtual environment, with one clear line where the machine lacks what it needs.

Debian and Ubuntu ship Python without `ensurepip`; the package that brings it is installed when we
may (root).
"""

import importlib.util
import os
import shutil
import subprocess
import sys


def main(folder: str) -> int:
    version = sys.version_info[:2]
    if not version >= (3, 11):
        print(f"error: Python {version[0]}.{version[1]} is too old; ssl-vit needs 3.11 or newer")
        print("fix:   make PYTHON=python3.12 …   (any of 3.11, 3.12, 3.13)")
        return 2
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python{version[0]}.{version[1]}-venv"
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            print("error: this Python cannot make virtual environments (no ensurepip module)")
            print(f"fix:   sudo apt-get install {package}")
            return 2
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", package], check=True)
    return subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
