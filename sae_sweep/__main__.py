"""Entry point of `python -m sae_sweep` and `sae-sweep`: only wiring."""

from sae_sweep import signals


def main() -> None:
    """Run the command line and exit with its exit code."""
    signals.listen()  # before the imports that take time
    from sae_sweep.cli.exit_code import exit_code

    signals.finish(exit_code())


if __name__ == "__main__":
    main()
