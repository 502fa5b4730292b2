"""`python -m dinov2rt` and `dinov2rt`: from the first moment on, Ctrl-C is no traceback."""


def main() -> int:
    """Run the command line of this process, and return its exit status."""
    try:
        from dinov2rt.cli import main as run

        return run()
    except KeyboardInterrupt:  # while modules were imported
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
