"""Every CPU benchmark, one after the other, then the tables and figures. ``make bench``."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

commands = [[name, "--threads", n] for name in ("lstm", "train", "decode") for n in ("1", "2")]
for name, *options in (*commands, ["encode"], ["roofline"], ["report"], ["plots"]):
    subprocess.run([sys.executable, str(FOLDER / f"{name}.py"), *options], check=True)
