"""An arm64 Debian with Python and a device's wheels, and the emulator that runs it: made once, kept in `.pi/`.

`python -m tests.pi.root` makes it (`make test-pi` does that first). Nothing of the machine is changed and root is
not needed: apt works on lists and a package state of its own, packages are unpacked, never installed, and only the
paths of this directory name the emulator. What is in a root is in its file `contents`, which is written last, so a
root without it is one that was interrupted, and is made anew.

Three things make an unprivileged root that behaves like a Raspberry Pi 4:

- `venv/bin/python3` is a script of the host that starts the emulator with Debian's interpreter and its own name as
  argv[0]. Python thus takes the script for its executable: `pyvenv.cfg` beside it makes it a virtual environment,
  and a process started with `sys.executable` is a script again, which the host's kernel can run. That is how the
  daemon starts its trainer child without binfmt_misc.
- Files that the emulator finds under the root hide the host's: `/proc/cpuinfo` and `/sys/devices/system/cpu` tell
  of four Cortex-A72. ONNX Runtime reads both when it is imported and crashes when neither tells of ARM cores.
- The wheels are those of pip's own resolver for the platform, with the version of ONNX Runtime that the tests
  compare with.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).parents[2]
CACHE = PROJECT / ".pi"
CONTENTS = "contents"
PACKAGES = ("python3", "libstdc++6")  # numpy's and ONNX Runtime's wheels link libstdc++, Python does not
EMULATOR = "qemu-user-static"
# The newest tag that wheels of the base list carry; Debian 12 has glibc 2.36.
PLATFORM = "manylinux_2_28_aarch64"
MODULES = "click, msgspec, numpy, onnxruntime, paho.mqtt.client, sqlite3, ssl, structlog"
TOOLS = ("apt-get", "dpkg-deb", "tar")
WAIT_S = 300.0  # of one step; the longest is 62 MB of emulator over a slow line
UNUSED = ("./usr/share/doc", "./usr/share/man", "./usr/share/locale")
CORES = 4
CPUINFO = """processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
# Other lists and another package state than the machine's, so that neither root nor a foreign architecture is needed.
APT = """APT::Architecture "arm64";
APT::Architectures {{ "arm64"; "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{state}";
Dir::State::status "{state}/status";
Dir::Cache "{cache}";
"""
PYTHON = """#!/bin/sh
# The host runs this script; the emulator runs Python, which takes the script for itself.
exec {emulator} -cpu cortex-a72 -L {root} -0 "$0" {interpreter} "$@"
"""


class BuildError(Exception):
    """A step of the build failed; the message is what it printed last."""


def obstacle() -> str:
    """Why a root can never be made on this machine, or nothing."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"it is compared with Linux on x86_64, and this is {sys.platform} on {platform.machine()}"
    if _release().get("ID") != "debian":
        return "apt finds arm64 packages beside those of the machine on Debian only"
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} not found"
    return ""


def find() -> Path | None:
    """The directory of a whole root that fits this checkout, or None."""
    made = CACHE / key()
    return made if (made / CONTENTS).exists() else None


def key() -> str:
    """Names a root by what it is made from: this file, the base list, the runtime, Debian, and its own place."""
    source = Path(__file__).read_bytes()
    facts = [*requirements(), _release().get("VERSION_CODENAME", ""), str(CACHE)]
    return hashlib.sha256(source + "\0".join(facts).encode()).hexdigest()[:16]


def requirements() -> list[str]:
    """A device's base list, with the version of ONNX Runtime that is installed here."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], f"onnxruntime=={metadata.version('onnxruntime')}"]


def build() -> Path:
    """Make the root, or find that another process has; raises BuildError."""
    CACHE.mkdir(exist_ok=True)
    with _locked(CACHE / "lock"):
        if made := find():
            return made
        for old in CACHE.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
        made = CACHE / key()
        work = made / "work"
        debs = _packages(work)
        root = _unpacked(made, debs)
        python = (root / "usr/bin/python3").readlink().name
        _virtual_environment(made, python)
        wheels = _wheels(made, python)
        _run(
            [made / "venv/bin/python3", "-I", "-c", f"import {MODULES}"]
        )  # it works, and its bytecode is cached
        shutil.rmtree(work)
        partial = made / f"{CONTENTS}.part"
        partial.write_text("\n".join([*sorted(deb.name for deb in debs), *wheels]) + "\n")
        partial.rename(made / CONTENTS)
    return made


def _packages(work: Path) -> list[Path]:
    """Fetch the emulator, Python and all that Python depends on, with the machine's own sources and keys."""
    state, cache = work / "state", work / "cache"
    for directory in (state / "lists/partial", cache / "archives/partial"):
        directory.mkdir(parents=True)
    (state / "status").touch()
    settings = work / "apt.conf"
    settings.write_text(APT.format(state=state, cache=cache))
    apt = {**os.environ, "APT_CONFIG": str(settings), "LC_ALL": "C"}
    _run(["apt-get", "update", "-qq"], env=apt)
    _run(["apt-get", "install", "-qq", "--download-only", "--yes", *PACKAGES], env=apt)
    _run(["apt-get", "download", "-qq", f"{EMULATOR}:amd64"], env=apt, cwd=cache / "archives")
    return sorted((cache / "archives").glob("*.deb"))


def _unpacked(made: Path, debs: Sequence[Path]) -> Path:
    """The root's directory, with the files of the packages in it and the emulator beside it."""
    root = made / "root"
    for name in ("bin", "lib", "sbin"):  # packages of a merged /usr name files either way
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    exclude = [f"--exclude={path}" for path in UNUSED]
    for deb in debs:
        if deb.name.startswith(EMULATOR):
            _extract(deb, made, "--strip-components=3", "./usr/bin/qemu-aarch64-static")
        else:
            _extract(deb, root, "--keep-directory-symlink", *exclude)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(CPUINFO.format(core=core) for core in range(CORES)))
    cpu = root / "sys/devices/system/cpu"
    cpu.mkdir(parents=True)
    for name in ("possible", "present"):
        (cpu / name).write_text(f"0-{CORES - 1}\n")
    return root


def _extract(deb: Path, into: Path, *options: str) -> None:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as files:
        _run(["tar", "--extract", "--no-same-owner", f"--directory={into}", *options], stdin=files.stdout)
    if files.returncode:
        raise BuildError(f"dpkg-deb ended with code {files.returncode} on {deb.name}")


def _virtual_environment(made: Path, python: str) -> None:
    root, script = made / "root", made / "venv/bin/python3"
    script.parent.mkdir(parents=True)
    paths = {
        "emulator": made / "qemu-aarch64-static",
        "root": root,
        "interpreter": root / "usr/bin" / python,
    }
    script.write_text(PYTHON.format(**{name: shlex.quote(str(path)) for name, path in paths.items()}))
    script.chmod(0o755)
    (made / "venv/pyvenv.cfg").write_text(f"home = {root}/usr/bin\ninclude-system-site-packages = false\n")


def _wheels(made: Path, python: str) -> list[str]:
    """Install the base list into the virtual environment; what pip put there."""
    site = made / "venv/lib" / python / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    wanted = [
        "--platform",
        PLATFORM,
        "--only-binary=:all:",
        "--python-version",
        python.removeprefix("python"),
    ]
    _run([*pip, "--no-compile", "--target", site, *wanted, *requirements()])
    return sorted(f"{d.name} {d.version}" for d in metadata.distributions(path=[str(site)]))


def _run(command: Sequence[str | Path], **options: object) -> None:
    try:
        done = subprocess.run(
            [*map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=WAIT_S,
            check=False,
            **options,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {WAIT_S:g} s") from error
    if done.returncode:
        last = done.stdout.decode(errors="replace")[-2000:]
        raise BuildError(f"{' '.join(map(str, command))} ended with code {done.returncode}:\n{last}")


@contextmanager
def _locked(path: Path):
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def main() -> int:
    """Make the root where one can be made; 1 when that failed."""
    if why := obstacle():
        sys.stdout.write(f"no emulated Raspberry Pi here: {why}\n")
    elif find() is None:
        sys.stdout.write("making an emulated Raspberry Pi in .pi/ (once, about 140 MB to fetch) …\n")
        sys.stdout.flush()
        try:
            build()
        except BuildError as error:
            sys.stdout.write(f"no emulated Raspberry Pi: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
