"""CIFAR-100 from a host that misbehaves: a server on the loopback address, and a tiny archive in the real format."""

import errno
import hashlib
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from trees import complaint

from ltr.data import cifar
from ltr.data.cifar import CIFAR10, CIFAR100, Retries
from ltr.datasets import Absent, load

PATIENT = Retries(attempts=3, pause=0.01, timeout=30.0)
QUICK = Retries(attempts=3, pause=0.01, timeout=2.0)  # where the time must run out, or must nearly
NAMES = ["ant", "bee", "cow"]
TRAIN, TEST = 5, 2  # images a class


def pickled(split: str) -> bytes:
    """A split as CIFAR-100 has it: pixels uint8 [N, 3 * 32 * 32], channel by channel, and labels."""
    count = len(NAMES) * {"train": TRAIN, "test": TEST}[split]
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3 * 32 * 32), np.uint8)
    return pickle.dumps({"data": pixels, "fine_labels": [k % len(NAMES) for k in range(count)]})


FILES = {"train": pickled("train"), "test": pickled("test"), "meta": pickle.dumps({"fine_label_names": NAMES})}


def packed(files: dict[str, bytes], folder: str = "cifar-100-python") -> bytes:
    """cifar-100-python.tar.gz, or CIFAR-10's."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


ARCHIVE = packed(FILES)


# ---- the host: what it does on each request, one after the other; the last goes on for ever


class Host(ThreadingHTTPServer):
    """Answers each request as the next behaviour of `script` does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.script: list[Callable[[Answer], None]] = [good]
        self.requests = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/cifar-100-python.tar.gz"


class Answer(BaseHTTPRequestHandler):
    server: Host

    def do_GET(self) -> None:
        behave = self.server.script[min(self.server.requests, len(self.server.script) - 1)]
        self.server.requests += 1
        try:
            behave(self)
        except OSError:  # the client has gone
            self.close_connection = True

    def head(self, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *args) -> None:
        """Nothing to the terminal."""


def good(answer: Answer) -> None:
    answer.head(len(ARCHIVE))
    answer.wfile.write(ARCHIVE)


def of_unknown_length(answer: Answer) -> None:
    answer.head(None)
    answer.wfile.write(ARCHIVE)


def cut_in_the_middle(answer: Answer) -> None:
    answer.head(len(ARCHIVE))
    answer.wfile.write(ARCHIVE[: len(ARCHIVE) // 2])


def cut_of_unknown_length(answer: Answer) -> None:
    answer.head(None)
    answer.wfile.write(ARCHIVE[: len(ARCHIVE) // 2])


def wrong_bytes(answer: Answer) -> None:
    answer.head(len(ARCHIVE))
    answer.wfile.write(ARCHIVE[:-1] + b"?")


def a_page_instead(answer: Answer) -> None:
    answer.head(19)
    answer.wfile.write(b"<html>log in</html>")


def slow(answer: Answer) -> None:
    """Longer in all than the timeout, but never without a byte for so long."""
    answer.head(len(ARCHIVE))
    step = len(ARCHIVE) // 8 + 1
    for start in range(0, len(ARCHIVE), step):
        answer.wfile.write(ARCHIVE[start : start + step])
        answer.server.closing.wait(0.3)


def stall_in_the_body(answer: Answer) -> None:
    answer.head(len(ARCHIVE))
    answer.wfile.write(ARCHIVE[:100])
    answer.server.closing.wait(60)


def stall_before_the_head(answer: Answer) -> None:
    answer.server.closing.wait(60)


def no_http(answer: Answer) -> None:
    answer.wfile.write(b"\0\1 what is this?\r\n\r\n")


def hang_up(answer: Answer) -> None:
    answer.close_connection = True


def status(code: int) -> Callable[[Answer], None]:
    return lambda answer: answer.send_error(code)


@pytest.fixture
def host(monkeypatch) -> Iterator[Host]:
    """The host, with torchvision's addresses and sums set to it."""
    server = Host()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setattr(CIFAR100, "url", server.url)
    monkeypatch.setattr(CIFAR100, "tgz_md5", md5(ARCHIVE))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(FILES["train"])]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5(FILES["test"])]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5(FILES["meta"])})
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


def assert_read(root: Path, retries: Retries = PATIENT) -> None:
    """The data is right, and nothing half-written is beside it."""
    train, test, names = cifar.read(root, retries)
    assert names == NAMES
    for split, images in (("train", train), ("test", test)):
        stored = pickle.loads(FILES[split])
        assert np.array_equal(images.images, stored["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert images.labels.tolist() == stored["fine_labels"]
    assert_nothing_half_written(root)


def assert_nothing_half_written(root: Path) -> None:
    names = {path.name for path in root.iterdir()}
    assert names <= {".cifar100.lock", "cifar-100-python", "cifar-100-python.tar.gz"}
    archive = root / "cifar-100-python.tar.gz"
    assert not archive.exists() or archive.read_bytes() == ARCHIVE


# ---- it comes


def test_progress_is_shown(host, tmp_path, capsys):
    assert_read(tmp_path / "data")
    shown = capsys.readouterr().out
    assert shown.startswith(f"downloading {host.url} (0.1 MB): 10 %")
    assert shown.endswith(" 100 %\n")
    assert host.requests == 1


def test_a_file_of_unknown_length_comes_too(host, tmp_path):
    host.script = [of_unknown_length]
    assert_read(tmp_path)


@pytest.mark.seconds
def test_a_slow_host_is_waited_for(host, tmp_path, capsys):
    host.script = [slow]
    assert_read(tmp_path, QUICK)
    assert "failed" not in capsys.readouterr().out
    assert host.requests == 1


FAULTS = {  # what the host does: what the user reads
    cut_in_the_middle: "connection cut after {half:,} of {all:,} bytes",
    cut_of_unknown_length: "what came as cifar-100-python.tar.gz has MD5 {md5_half}, expected {md5}",
    wrong_bytes: "what came as cifar-100-python.tar.gz has MD5 {md5_wrong}, expected {md5}",
    a_page_instead: "what came as cifar-100-python.tar.gz has MD5 {md5_page}, expected {md5}",
    stall_in_the_body: "no answer for {timeout:g} s",
    stall_before_the_head: "no answer for {timeout:g} s",
    status(404): "HTTP Error 404: Not Found",
    status(500): "HTTP Error 500: Internal Server Error",
    status(503): "HTTP Error 503: Service Unavailable",
    no_http: "what is this?",
    hang_up: "Remote end closed connection without response",
}
WORDS = {
    "half": len(ARCHIVE) // 2,
    "all": len(ARCHIVE),
    "md5": md5(ARCHIVE),
    "md5_half": md5(ARCHIVE[: len(ARCHIVE) // 2]),
    "md5_wrong": md5(ARCHIVE[:-1] + b"?"),
    "md5_page": md5(b"<html>log in</html>"),
}
IDS = "cut,cut of unknown length,wrong bytes,a page,stall,silence,404,500,503,no HTTP,hang up".split(",")


@pytest.mark.seconds
@pytest.mark.parametrize(("fault", "says"), FAULTS.items(), ids=IDS)
def test_after_a_fault_the_file_is_fetched_again(fault, says, host, tmp_path, capsys):
    host.script, retries = [fault, good], QUICK if "no answer" in says else PATIENT
    assert_read(tmp_path, retries)
    assert host.requests == 2
    report = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("attempt"))
    assert report.startswith("attempt 1 of 3 failed: ")
    assert report.endswith("; the next in 0.01 s")
    assert says.format(**WORDS, timeout=retries.timeout) in report


def test_several_faults_in_a_row_are_survived_with_growing_pauses(host, tmp_path, capsys):
    host.script = [cut_in_the_middle, status(404), good]
    assert_read(tmp_path)
    reports = [line for line in capsys.readouterr().out.splitlines() if line.startswith("attempt")]
    assert [line.split("; ")[1] for line in reports] == ["the next in 0.01 s", "the next in 0.02 s"]


# ---- it does not come


def refusal(root: Path, retries: Retries = PATIENT) -> str:
    """What the user reads at last: one line, with what to do."""
    message = complaint(cifar.read, root, retries, error=Absent)
    assert message.startswith(f"--data-root: CIFAR-100 is not in {root} and could not be had from {CIFAR100.url} (")
    assert f"put cifar-100-python.tar.gz (MD5 {CIFAR100.tgz_md5}) there" in message
    assert message.count("--dataset folder, list or synthetic") == 1
    return message


@pytest.mark.seconds
@pytest.mark.parametrize(("fault", "says"), FAULTS.items(), ids=IDS)
def test_a_fault_that_stays_ends_in_one_sentence(fault, says, host, tmp_path):
    host.script = [fault]
    timeout = 0.5 if "no answer" in says else 10  # short only where it must run out
    assert says.format(**WORDS, timeout=timeout) in refusal(tmp_path, Retries(2, 0.01, timeout))
    assert host.requests == 2
    assert_nothing_half_written(tmp_path)
    assert not (tmp_path / "cifar-100-python.tar.gz").exists()


def test_a_refused_connection_ends_in_one_sentence(host, tmp_path, capsys):
    host.shutdown()
    host.server_close()
    assert "Connection refused" in refusal(tmp_path)
    assert capsys.readouterr().out.count("Connection refused") == 2  # the third attempt is the sentence's
    assert_nothing_half_written(tmp_path)


def test_an_unknown_host_ends_in_one_sentence(host, tmp_path, monkeypatch):
    def unknown(*args, **kwargs):
        raise OSError(-3, "Temporary failure in name resolution")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    assert "Temporary failure in name resolution" in refusal(tmp_path)


def test_a_full_disk_is_not_tried_again(host, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert os.strerror(errno.ENOSPC) in refusal(tmp_path)
    assert host.requests == 1
    assert_nothing_half_written(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_refused(host, tmp_path):
    (tmp_path / "data").touch()
    assert "File exists" in refusal(tmp_path / "data")
    assert host.requests == 0


# ---- what is there already


def test_good_files_touch_no_network(host, tmp_path, capsys):
    cifar.read(tmp_path, PATIENT)
    (tmp_path / "cifar-100-python.tar.gz").unlink()
    host.requests = 0
    capsys.readouterr()
    assert_read(tmp_path)
    assert (host.requests, capsys.readouterr().out) == (0, "")


def test_the_set_is_loaded_by_its_name(host, tmp_path):
    data = load("cifar100", tmp_path, imbalance_factor=5)
    assert (data.name, data.class_names, data.class_counts.tolist()) == ("cifar100", NAMES, [5, 2, 1])


def test_cifar10_comes_the_same_way(host, tmp_path, monkeypatch):
    labels = [0] * 5 + [1] * 5
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3 * 32 * 32), np.uint8)
    batch, meta = {"data": pixels, "labels": labels}, {"label_names": NAMES[:2]}
    files = {"batch": pickle.dumps(batch), "meta": pickle.dumps(meta)}
    monkeypatch.setattr(CIFAR10, "train_list", [["batch", md5(files["batch"])]])
    monkeypatch.setattr(CIFAR10, "test_list", [["batch", md5(files["batch"])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "filename": "meta", "md5": md5(files["meta"])})
    archive = packed(files, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    (tmp_path / CIFAR10.filename).write_bytes(archive)
    data = load("cifar10", tmp_path, imbalance_factor=5)
    assert (data.name, data.class_names, data.class_counts.tolist()) == ("cifar10", NAMES[:2], [5, 1])
    assert host.requests == 0


def test_an_absent_cifar10_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    message = complaint(cifar.read, tmp_path, Retries(1, 0, 1), CIFAR10, error=Absent)
    assert message.startswith(f"--data-root: CIFAR-10 is not in {tmp_path} and could not be had from http://127")
    assert f"put cifar-10-python.tar.gz (MD5 {CIFAR10.tgz_md5}) there" in message


def test_an_archive_put_there_by_hand_touches_no_network(host, tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(ARCHIVE)
    assert_read(tmp_path)
    assert host.requests == 0


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_unpacked_again_from_the_archive(name, host, tmp_path):
    cifar.read(tmp_path, PATIENT)
    path = tmp_path / "cifar-100-python" / name
    path.write_bytes(FILES[name][:-5])
    host.requests = 0
    assert_read(tmp_path)
    assert path.read_bytes() == FILES[name]
    assert host.requests == 0


def test_half_an_archive_is_fetched_again(host, tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(ARCHIVE[:500])
    assert_read(tmp_path)
    assert host.requests == 1


def test_damaged_files_without_a_network_are_named_with_both_sums(host, tmp_path):
    cifar.read(tmp_path, PATIENT)
    host.script = [status(404)]
    archive, train = tmp_path / "cifar-100-python.tar.gz", tmp_path / "cifar-100-python" / "train"
    archive.write_bytes(ARCHIVE[:500])
    train.write_bytes(b"")
    message = refusal(tmp_path)
    assert f"; {archive} has MD5 {md5(ARCHIVE[:500])}, expected {md5(ARCHIVE)}" in message
    assert f"; {train} has MD5 {md5(b'')}, expected {md5(FILES['train'])}" in message
    assert archive.read_bytes() == ARCHIVE[:500]  # what a user put there is not removed


def test_a_pickle_with_a_wrong_sum_is_never_read(host, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    cifar.read(tmp_path, PATIENT)
    for name in FILES:
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(Malicious()))
    host.script = [lambda answer: (answer.head(None), answer.wfile.write(packed({"train": pickle.dumps(Malicious())})))]
    (tmp_path / "cifar-100-python.tar.gz").unlink()
    assert "has MD5" in refusal(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_litter_of_a_killed_download_is_cleared(host, tmp_path):
    (tmp_path / ".cifar-100-python.tar.gz.4711.tmp").write_bytes(ARCHIVE[:500])
    assert_read(tmp_path)


def test_two_processes_do_not_fetch_at_once(host, tmp_path, monkeypatch):
    other, said = FileLock(tmp_path / ".cifar100.lock"), []
    other.acquire()

    def the_other_finishes(words="", **options):
        if not words.startswith("waiting"):
            return
        said.append(words)
        cifar.unpack(tmp_path, PATIENT)
        (tmp_path / CIFAR100.filename).unlink()
        other.release()

    monkeypatch.setattr(cifar, "print", the_other_finishes, raising=False)
    assert_read(tmp_path)
    assert said == [f"waiting for another process that puts CIFAR-100 into {tmp_path}"]
    assert host.requests == 1
