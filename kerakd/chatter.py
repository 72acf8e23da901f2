"""Holding back what C++ libraries write to the terminal."""

import contextlib
import os
import sys
import tempfile
import warnings


@contextlib.contextmanager
def native_chatter_off():
    """Holds back what C++ libraries write to stderr; an exception brings it back, so nothing that explains it is lost."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
