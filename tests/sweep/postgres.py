"""A real PostgreSQL, started by the tests themselves on a free port of this machine."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: In the URL, so that tests can see that nobody prints it.
PASSWORD = "a-secret-of-the-tests"


def binaries() -> Path | None:
    """Folder of `initdb` and `postgres`, which Debian keeps outside PATH."""
    folders = [Path(p).parent for p in (shutil.which("initdb"), shutil.which("pg_ctl")) if p]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None)


@contextmanager
def server() -> Iterator[str]:
    """A server with an empty database; yields its URL.

    PostgreSQL refuses to run as root: then it runs as the package's user, or as nobody.

    Raises:
        RuntimeError: with the server's own message, if it does not start.
    """
    found = binaries()
    assert found is not None
    is_root = os.geteuid() == 0
    account = _account() if is_root else None
    switch = (
        {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    )
    # Not pytest's folder, which another user may not enter.
    with tempfile.TemporaryDirectory(prefix="t5ts-postgres-") as name:
        folder = Path(name)
        secret, data, log = folder / "password", folder / "data", folder / "log"
        secret.write_text(PASSWORD)
        if account:
            for path in (folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        made = subprocess.run(
            [found / "initdb", "--pgdata", data, "--username=t5ts", f"--pwfile={secret}",
             "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"],
            cwd=folder, capture_output=True, text=True, **switch,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(f"initdb failed: {made.stdout}{made.stderr}")
        port = _free_port()
        with log.open("w") as output:
            process = subprocess.Popen(
                [found / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder,
                 "-c", "fsync=off"],
                cwd=folder, stdout=output, stderr=subprocess.STDOUT, **switch,
            )  # fmt: skip
        try:
            url = f"postgresql+psycopg://t5ts:{PASSWORD}@127.0.0.1:{port}/postgres"
            _wait_until_it_answers(process, url, log)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _account() -> pwd.struct_passwd:
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url.replace("+psycopg", ""), connect_timeout=2).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL: {error}\n{log.read_text()}") from error
            time.sleep(0.05)
