"""``python -m lrcn_fast.training --config RECIPE --out FOLDER``: training without the command-line extra.

Also what ``torchrun`` and ``accelerate launch`` start, one process per GPU or per share of the CPU.
"""

import argparse
import json
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and train. Returns the exit status."""
    from lrcn_fast.training.config import load_config, recipe_names

    parser = argparse.ArgumentParser(prog="python -m lrcn_fast.training", description="Train a model.")
    parser.add_argument("--config", required=True, help=f"YAML file, or one of {', '.join(recipe_names())}")
    parser.add_argument("--out", required=True, help="folder for checkpoints, logs and the trained model")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="phases.0.epochs=3")
    parser.add_argument("--restart", action="store_true", help="forget an earlier run in --out")
    parser.add_argument("--progress", action="store_true", default=None, help="even if stderr is no terminal")
    options = parser.parse_args(arguments)
    from lrcn_fast.training.loop import train

    try:
        config = load_config(options.config, options.set)
        config.check_environment()
        summary = train(
            config, options.out, device=options.device, restart=options.restart, progress=options.progress
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary["best"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
