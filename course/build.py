"""Builds the book and serves it: `make book`.

    python -m course.build               builds into _build/html, then serves it until Ctrl-C
    python -m course.build --no-serve    only builds
    python -m course.build --strict      warnings are errors (what `make test` does), into its own folder
"""
import argparse
import errno
import functools
import http.server
import os
import subprocess
import sys
import time

from course import ROOT


def build(output=".", strict=False) -> int:
    """Builds the book into `output`/_build/html; returns the exit code. Pages without faults are built in any case."""
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", str(ROOT), "--path-output", str(ROOT / output)]
    if strict:
        command += ["-W", "--keep-going"]
    # Jupyter Book's own configuration folders stay out of the home directory, and nothing is asked of other hosts.
    env = os.environ | {"PYTHONWARNINGS": "ignore", "JUPYTER_PLATFORM_DIRS": "1", "NO_COLOR": "1"}
    began = time.monotonic()
    process = subprocess.Popen([*command, "-q"], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = process.communicate()[0].splitlines()
    faults = [line for line in lines if "WARNING" in line or "ERROR" in line or "rror:" in line]
    print("\n".join(faults if not process.returncode else lines), end="\n" if faults or process.returncode else "")
    where = os.path.relpath(ROOT / output / "_build/html")
    print(f"built {where}/index.html in {time.monotonic() - began:.0f} s, {len(faults)} warnings, exit code {process.returncode}")
    return process.returncode


def serve(port):
    handler = functools.partial(QuietHandler, directory=str(ROOT / "_build/html"))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"Port {port} is taken by another program. Choose another: make book PORT={port + 1}")
        if error.errno == errno.EACCES:
            sys.exit(f"Port {port} is reserved for the system. Choose one above 1023: make book PORT=8000")
        raise
    print(f"The book is at http://127.0.0.1:{port}/book/index.html   (Ctrl-C ends it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def main():
    parser = argparse.ArgumentParser(prog="make book")
    parser.add_argument("--no-serve", action="store_true")
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--output", default=".", help="the folder to build in (default: here)")
    options = parser.parse_args()
    code = build(options.output, options.strict)
    if code or options.no_serve:
        sys.exit(code)
    serve(options.port)


if __name__ == "__main__":
    main()
