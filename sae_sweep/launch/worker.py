"""Entry point of a worker process of `launcher=local`: `python -m sae_sweep.launch.worker FOLDER NUMBER`.

Its standard input is a pipe from the command that started it. When the pipe ends, so has the command, and the
worker stops as it does after SIGTERM.
"""

import sys
from pathlib import Path

from sae_sweep import signals


def main() -> None:
    """Train the frozen group NUMBER of the sweep in FOLDER, as `launch.job` does."""
    signals.listen()
    signals.unblock()
    signals.stop_at_end_of(sys.stdin.fileno())
    import sae_sweep.launch.group  # noqa: F401 - imports torch now, while there is nothing to save
    from sae_sweep.launch import job

    try:
        job.run_job_alone(Path(sys.argv[1]), int(sys.argv[2]))
    except SystemExit as stopped:
        signals.finish(int(stopped.code or 0))
    signals.finish(0)


if __name__ == "__main__":
    main()
