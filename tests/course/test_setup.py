"""The two commands: what stands in their way is said in one line that tells what to do."""
import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from course import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="not run here: the setup is a POSIX shell script")


@pytest.fixture
def copy(tmp_path):
    """A copy of what the setup reads, with nothing installed."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt", "requirements-gpu.txt", "package-lock.json", "course/bootstrap.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def tools(folder, **scripts):
    """A PATH with the everyday tools and these scripts in the place of programs."""
    folder.mkdir()
    for tool in ("sh", "make", "cat", "cksum", "tr", "df", "awk", "rm", "head", "tail", "id", "dirname", "sed"):
        (folder / tool).symlink_to(shutil.which(tool))
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder), "HOME": os.environ.get("HOME", "/")}


def run(folder, env, *command):
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)


def one_line(done):
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0 and len(lines) == 1, done.stderr
    return lines[0]


def test_old_python(copy, tmp_path):
    env = tools(tmp_path / "bin", python3='[ "$1" = --version ] && echo Python 3.8.10; exit 1')
    said = one_line(run(copy, env, "make", "book"))
    assert "Python 3.11 to 3.14 is needed" in said and "3.8.10" in said and "make PYTHON=" in said


def test_no_python(copy, tmp_path):
    assert "Python 3.11 to 3.14 is needed" in one_line(run(copy, tools(tmp_path / "bin"), "make", "book"))


def test_wrong_python_named(copy, tmp_path):
    said = one_line(run(copy, tools(tmp_path / "bin"), "make", "book", "PYTHON=/no/such/python"))
    assert "/no/such/python" in said


def test_no_disk(copy, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin").rmdir()
    env = tools(tmp_path / "bin", python3=f'exec {sys.executable} "$@"')
    (tmp_path / "bin/df").unlink()
    (tmp_path / "bin/df").write_text("#!/bin/sh\necho head; echo fs 1 1 102400 1% /\n")
    (tmp_path / "bin/df").chmod(0o755)
    said = one_line(run(copy, env, "make", "book"))
    assert "Only 100 MB are free" in said and "Free some disk space" in said


def test_no_venv_module(copy, tmp_path):
    env = tools(tmp_path / "bin", python3=f'[ "$1" = -m ] && {{ echo "ensurepip is not available"; exit 1; }}; exec {sys.executable} "$@"')
    done = run(copy, env, "make", "book")
    assert "python3-venv" in done.stderr and done.returncode != 0
    assert not (copy / ".venv").exists()


def test_book_is_served_where_it_is_said_to_be(tmp_path):
    """Builds into the real place, serves it on a free port, and asks for the address that was printed."""
    import urllib.request
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "course.build", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        address = next(line for line in server.stdout if "The book is at" in line).split()[4]
        with urllib.request.urlopen(address, timeout=10) as page:
            assert page.status == 200
        with urllib.request.urlopen(address.replace("book/index", "book/03_tensorrt/questions/01_what_is_tensorrt"), timeout=10) as page:
            assert "In 30 seconds" in page.read().decode()
    finally:
        server.kill()
        server.wait()


def test_port_taken():
    (ROOT / "_build/html").mkdir(parents=True, exist_ok=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run([sys.executable, "-c", f"from course.build import serve; serve({port})"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and f"make book PORT={port + 1}" in done.stderr and len(done.stderr.splitlines()) == 1


def test_second_run_installs_nothing():
    if not (ROOT / ".venv/.installed").exists():
        pytest.skip("not run here: this environment was not made by make")
    env = os.environ | {"PATH": os.environ["PATH"]}
    before = {p: p.stat().st_mtime_ns for p in (ROOT / ".venv/.installed", ROOT / "node_modules/.installed")}
    done = subprocess.run(["sh", "course/bootstrap.sh", "book"], cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_locks_have_every_direct_need():
    import tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for lock, groups in (("requirements.txt", ("dev", "cpu")), ("requirements-gpu.txt", ("gpu",))):
        text = (ROOT / lock).read_text()
        locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^ ;\\]+)", text, re.MULTILINE))
        for need in project["dependencies"] + [n for g in groups for n in extras[g]]:
            name, _, pin = re.match(r"([A-Za-z0-9_.-]+)(==([^ ;]+))?", need).groups()
            assert name in locked, f"{lock} lacks {name}: run make lock"
            assert pin is None or locked[name] == pin, f"{lock} has {name} {locked[name]}, pyproject.toml wants {pin}: run make lock"
    assert "onnxruntime-gpu==" not in (ROOT / "requirements.txt").read_text()
    assert not re.search(r"^onnxruntime==", (ROOT / "requirements-gpu.txt").read_text(), re.MULTILINE)
    assert not re.search(r"^torch==", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
