"""The folder store: complete files or none, whatever happens, and never a path that somebody else has made up."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from service.artifacts import MissingFileError, StoreError, store_for
from service.settings import Settings
from service.space import FullError, enough_space, require_space, show_bytes
from service.store_folder import FolderStore

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> FolderStore:
    return FolderStore(root)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(CONTENT)
    return tmp_path / "source"


def files_in(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if not path.is_dir()]


def test_what_is_put_in_comes_out(store: FolderStore, source: Path) -> None:
    before = time.time()
    assert not store.has(SHA256)
    assert store.put(source) == SHA256
    assert store.put(source, expected=SHA256) == SHA256
    stored = store.stat(SHA256)
    assert stored is not None
    assert (stored.sha256, stored.size) == (SHA256, len(CONTENT))
    assert before - 1 <= stored.modified <= time.time() + 1
    assert store.fetch(SHA256).read_bytes() == CONTENT
    assert b"".join(store.read(SHA256)) == CONTENT
    assert b"".join(store.read(SHA256, 7, 1000)) == CONTENT[7:1000]
    assert [stored.sha256 for stored in store.listing()] == [SHA256]
    store.delete(SHA256)
    store.delete(SHA256)
    assert list(store.listing()) == []
    with pytest.raises(MissingFileError, match=f"no file with sha256 {SHA256}"):
        store.fetch(SHA256)
    with pytest.raises(MissingFileError):
        list(store.read(SHA256))


def test_a_file_that_is_not_what_was_expected_is_not_stored(store: FolderStore, root: Path, source: Path) -> None:
    with pytest.raises(ValueError, match=f"has sha256 {SHA256}, expected {'a' * 64}"):
        store.put(source, expected="a" * 64)
    assert files_in(root) == []


def test_a_verified_file_is_linked_and_its_source_left(store: FolderStore, root: Path, source: Path) -> None:
    os.utime(source, (1, 1))
    for _ in range(2):  # the second time its place has the same inode, and renaming does nothing
        store.take(source, SHA256)
    assert source.stat().st_ino == store.fetch(SHA256).stat().st_ino
    assert files_in(root) == [store.fetch(SHA256)]
    stored = store.stat(SHA256)
    assert stored is not None
    assert stored.modified > 1  # it is as old as its time in the store


def test_where_links_do_not_work_the_file_is_copied_and_verified(store: FolderStore, source: Path) -> None:
    other_disk = Path("/dev/shm") / f"dklbench-test-{os.getpid()}"
    if not other_disk.parent.is_dir():
        pytest.skip("needs a second file system at /dev/shm")
    try:
        other_disk.write_bytes(CONTENT)
        store.take(other_disk, SHA256)
        assert store.fetch(SHA256).read_bytes() == CONTENT
        with pytest.raises(ValueError, match="expected"):
            store.take(other_disk, "a" * 64)
    finally:
        other_disk.unlink()


def test_concurrent_writers_and_removers_of_one_content(store: FolderStore, root: Path, source: Path) -> None:
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                store.put(source) if number % 2 else store.take(source, SHA256)
                if number == 0:
                    store.delete(SHA256)
                found = b"".join(store.read(SHA256)) if store.has(SHA256) else CONTENT
                assert found == CONTENT
        except MissingFileError:
            pass  # removed between the two: complete or absent
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert all(path.name == SHA256 for path in files_in(root))


def test_a_writer_that_is_killed_leaves_a_temporary_file_at_most(store: FolderStore, root: Path) -> None:
    program = (
        "import sys, pathlib, itertools; from service.store_folder import FolderStore\n"
        "def pieces():\n"
        "    for _ in itertools.count():\n"
        "        yield b'x' * 2**20; print(flush=True)\n"
        "FolderStore(pathlib.Path(sys.argv[1])).write(itertools.islice(pieces(), 500))"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(root)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert list(store.listing()) == []
    (left,) = files_in(root)
    assert list(store.tidy(time.time() - 100, dry_run=False)) == []  # it may be at it still
    assert [name for name, _ in store.tidy(time.time() + 1, dry_run=True)] == [left.name]
    assert left.exists()
    list(store.tidy(time.time() + 1, dry_run=False))
    assert files_in(root) == []


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65, "a" * 63 + "/", "a" * 64 + "\n"]
)
def test_only_a_sha256_becomes_part_of_a_path(store: FolderStore, source: Path, name: str) -> None:
    for call in (store.has, store.fetch, store.delete, lambda name: list(store.read(name))):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            call(name)
    with pytest.raises(ValueError, match="expected"):
        store.put(source, expected=name)


def test_links_are_not_followed(store: FolderStore, root: Path, source: Path, tmp_path: Path) -> None:
    store.put(source)
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    place = root / SHA256[:2] / SHA256
    place.unlink()
    place.symlink_to(secret)
    assert not store.has(SHA256)
    assert list(store.listing()) == []
    with pytest.raises(OSError, match="symbolic links"):
        list(store.read(SHA256))
    store.put(source)  # replaces the link, not what it leads to
    assert secret.read_bytes() == b"secret"
    assert store.fetch(SHA256).read_bytes() == CONTENT

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = ("00" if SHA256[:2] != "00" else "11") + SHA256[2:]
    (elsewhere / other).write_bytes(b"secret")
    (root / other[:2]).symlink_to(elsewhere)
    assert other not in {stored.sha256 for stored in store.listing()}
    with pytest.raises(StoreError, match="leads out of the store"):
        store.has(other)


def test_what_is_not_ours_is_not_listed_or_tidied(store: FolderStore, root: Path, source: Path) -> None:
    store.put(source)
    for name in ("README", SHA256[:2] + "/README", "00/" + SHA256, ".hidden.tmp"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"")
    assert [stored.sha256 for stored in store.listing()] == [SHA256]
    assert list(store.tidy(time.time() + 1, dry_run=False)) == []


def test_a_disk_that_runs_full_is_said_and_nothing_left(
    store: FolderStore, root: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(FullError, match=f"the disk under {root} is full; go on when there is room"):
            store.put(source)
    assert files_in(root) == []
    assert store.put(source) == SHA256


def test_a_store_says_whether_it_works(store: FolderStore, root: Path) -> None:
    store.check()
    assert files_in(root) == []
    root.rmdir()
    root.write_bytes(b"a file is in the way")
    with pytest.raises(StoreError, match=r"nothing can be stored in .*: File exists"):
        store.check()


def test_the_settings_choose_the_store(settings: Settings) -> None:
    assert isinstance(store_for(settings), FolderStore)
    assert store_for(settings) is store_for(settings)
    with pytest.raises(ValueError, match="must be s3://bucket/prefix, or empty for a folder; found 'ftp://x'"):
        store_for(settings.model_copy(update={"store": "ftp://x"}))


def test_space_is_refused_before_the_disk_is_full(settings: Settings) -> None:
    assert not settings.data_dir.exists()  # the disk it will be on counts
    plenty = settings.model_copy(update={"min_free_bytes": 0})
    require_space(plenty, 1)
    assert enough_space(plenty)
    full = settings.model_copy(update={"min_free_bytes": 2**60})
    assert not enough_space(full)
    with pytest.raises(FullError, match=r"has .* free, and needs .* for this; free some with dklbench gc"):
        require_space(full, 1)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3 * 2**29, "1.5 GiB"), (2**60, "1048576.0 TiB")],
)
def test_bytes_for_people(nbytes: int, text: str) -> None:
    assert show_bytes(nbytes) == text
