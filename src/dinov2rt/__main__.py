"""`python -m dinov2rt` and `dinov2rt`: from the first moment on, an error is no traceback."""

import sys
import threading

_MOST_SHOWN = 300
_NO_THREADS = "the system starts no more threads; raise the limit of processes: ulimit -u"


def main() -> int:
    """Run the command line of this process, and return its exit status."""
    try:
        try:
            from dinov2rt.cli import main as run
        except (ImportError, MemoryError, OSError) as error:
            return _not_loaded(error)
        return run()
    except KeyboardInterrupt:  # while modules were imported
        return 130 if _starts_threads() else _not_loaded(RuntimeError(_NO_THREADS))


def _starts_threads() -> bool:
    """OpenBLAS, which numpy loads, raises SIGINT where it cannot start its threads."""
    try:
        threading.Thread(target=int).start()
    except RuntimeError:
        return False
    return True


def _not_loaded(error: Exception) -> int:
    """Report why the program cannot start: no memory, too many open files, or missing files."""
    if "--debug" in sys.argv:
        raise error
    reason = " ".join(str(error).split()) or type(error).__name__
    if sys.stderr is not None:
        sys.stderr.write(f"dinov2rt: error: modules cannot be loaded ({reason[:_MOST_SHOWN]})\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
