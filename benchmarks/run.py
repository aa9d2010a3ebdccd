"""Every CPU benchmark, one after the other, then the tables of the README. ``make bench``."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

for name in ("lstm", "decode", "encode", "roofline", "report"):
    subprocess.run([sys.executable, str(FOLDER / f"{name}.py")], check=True)
