"""Batches: the same whatever the workers and the cache; workers that end; errors that stay readable."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_makers import CLASSES, folders, label, picture, save

from segshift.data.domains import Domain, DomainSettings, open_domain
from segshift.data.images import load_resized
from segshift.data.loader import batches
from segshift.data.streaming import stream
from segshift.data.tensors import as_float
from segshift.data.views import ViewSettings
from segshift.errors import UserError
from segshift.types import Batch

VIEW = ViewSettings(size=(24, 16), crop=(20, 12), scale=(0.7, 1.6), flip=True, jitter=0.3, blur=0.5)
PLAIN = ViewSettings(size=(24, 16))


def domain_at(root: Path, labelled: bool = True, name: str = "source") -> Domain:
    return open_domain(DomainSettings(root=root), CLASSES, labelled=labelled, name=name)


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    return domain_at(folders(tmp_path, 7, suffix=".jpg"))


def take(domain: Domain, view: ViewSettings = VIEW, start: int = 0, stop: int = 6, **options: object) -> list[Batch]:
    settings = {"batch_size": 4, "seed": 5, "workers": 0, **options}
    return list(batches(domain, view, start=start, stop=stop, **settings))  # type: ignore[arg-type]


def same(a: Batch, b: Batch) -> bool:
    assert a.label is not None
    assert b.label is not None
    assert a.affine is not None
    assert b.affine is not None
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.label, b.label)
        and torch.equal(a.affine, b.affine)
        and a.names == b.names
    )


def children() -> set[int]:
    """Processes whose parent is this one."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(folder.name))
    return found


def test_what_a_batch_is(domain: Domain) -> None:
    (batch,) = take(domain, stop=1)
    assert batch.image.shape == (4, 3, 12, 20)
    assert batch.image.dtype == torch.float32
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1
    assert batch.label is not None
    assert batch.label.shape == (4, 12, 20)
    assert batch.label.dtype == torch.int64
    assert set(batch.label.flatten().tolist()) <= {0, 1, 2, 3, 255}
    assert batch.affine is not None
    assert batch.affine.shape == (4, 3, 3)
    assert len(set(batch.names)) == 4
    assert batch.image.is_contiguous()
    by_name = {item.name: item for item in domain.items}
    (plain,) = take(domain, PLAIN, stop=1)
    for name, image in zip(plain.names, plain.image, strict=True):
        assert torch.equal(image, as_float(load_resized(by_name[name].image, (24, 16))[0]))


def test_without_labels(tmp_path: Path) -> None:
    (batch,) = take(domain_at(folders(tmp_path, labelled=False), labelled=False), stop=1)
    assert batch.label is None


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_whatever_the_workers(domain: Domain, workers: int) -> None:
    torch.set_num_threads(2)
    try:
        own = take(domain)
    finally:
        torch.set_num_threads(1)
    for a, b in zip(own, take(domain, workers=workers), strict=True):
        assert same(a, b)


def test_a_function_of_seed_and_step(domain: Domain) -> None:
    whole = take(domain)
    assert all(same(a, b) for a, b in zip(whole[4:], take(domain, start=4), strict=True))
    assert not same(whole[0], take(domain, stop=1, seed=6)[0])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(domain, workers=1)
    assert torch.equal(before, torch.get_rng_state()), "the global random state is left alone"
    assert take(domain, start=3, stop=3) == []


def test_domains_have_orders_of_their_own(tmp_path: Path) -> None:
    folders(tmp_path, 20)
    first, second = (
        [n for b in take(domain_at(tmp_path, name=name), PLAIN, stop=5) for n in b.names]
        for name in ("source", "target")
    )
    assert sorted(first) == sorted(second)
    assert first != second


def test_shards_make_up_the_batch(domain: Domain) -> None:
    (whole,) = take(domain, stop=1)
    parts = [take(domain, stop=1, shard=(rank, 2))[0] for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert part.names == whole.names[rank::2]
        assert torch.allclose(part.image, whole.image[rank::2], atol=1e-6)
    with pytest.raises(ValueError, match="divided"):
        take(domain, shard=(0, 3))


def test_the_cache_changes_nothing(domain: Domain, tmp_path: Path) -> None:
    cached = take(domain, cache=tmp_path / "cache", workers=1)
    assert all(same(a, b) for a, b in zip(take(domain), cached, strict=True))


def test_more_images_a_batch_than_there_are(tmp_path: Path) -> None:
    (batch,) = take(domain_at(folders(tmp_path, 2)), stop=1)
    assert sorted(batch.names) == ["000", "000", "001", "001"]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_file_is_named(tmp_path: Path, workers: int) -> None:
    domain = domain_at(folders(tmp_path, 3, suffix=".jpg"))
    path = domain.items[1].image
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        take(domain, workers=workers)
    assert str(path) in caught.value.found
    assert "Traceback" not in str(caught.value)
    assert children() == set()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_label_is_named(tmp_path: Path, workers: int) -> None:
    domain = domain_at(folders(tmp_path, 3))
    save(tmp_path / "labels" / "002.png", label(0, 40, 30))
    with pytest.raises(UserError, match=r"002\.png is 40x30") as caught:
        take(domain, workers=workers)
    assert "resize_labels" in caught.value.remedy


def test_workers_end_when_the_iterator_is_closed(domain: Domain) -> None:
    stream_of = batches(domain, VIEW, batch_size=2, seed=0, start=0, stop=1000, workers=2)
    next(stream_of)
    assert len(children()) >= 2
    stream_of.close()
    deadline = time.monotonic() + 60
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == set()


def test_a_killed_worker_is_a_readable_error(domain: Domain) -> None:
    stream_of = stream(_die, range(4), workers=1)
    with pytest.raises(UserError, match="was killed") as caught:
        list(stream_of)
    assert "workers: 0" in caught.value.remedy


def _die(_: int) -> int:
    os._exit(9)


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        list(stream(_divide, range(4), workers=1))


def test_ctrl_c_ends_quietly_and_at_once(tmp_path: Path) -> None:
    folders(tmp_path, 3)
    program = (
        f"import sys; sys.path[:0] = {[*sys.path, str(Path(__file__).parent)]!r}\n"
        "from test_data_loader import *\n"
        f"domain = domain_at(Path({str(tmp_path)!r}))\n"
        "for _ in batches(domain, VIEW, batch_size=2, seed=0, start=0, stop=10**9, workers=2):\n"
        "    print('batch', flush=True)\n"
    )
    # A machine that is slow is so before the first batch as well; one that pauses does not do so each time.
    assert any(ended < max(4.0, started) for started, ended in (_interrupted(program) for _ in range(3)))


def _interrupted(program: str) -> tuple[float, float]:
    """Seconds until the first batch of a program that gets Ctrl-C then, and from there to its quiet end."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "batch\n"
    middle = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=90)
    end = time.monotonic()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert errors.count("Traceback") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return middle - begin, end - middle


def _divide(_: int) -> float:
    return 1 / 0


def test_user_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(UserError("a", "b", "c")))
    assert (error.found, error.wanted, error.remedy) == ("a", "b", "c")


def test_affine_of_a_batch_leads_to_the_file(tmp_path: Path) -> None:
    columns = np.tile(np.rint(np.arange(200) * 255 / 199).astype(np.uint8), (150, 1))
    save(tmp_path / "images" / "a.png", np.stack([columns] * 3, -1))
    domain = domain_at(tmp_path, labelled=False)
    view = ViewSettings(size=(120, 90), crop=(64, 48), scale=(0.9, 1.4), flip=True)
    for batch in take(domain, view, batch_size=2):
        assert batch.affine is not None
        for image, matrix in zip(batch.image, batch.affine, strict=True):
            x = matrix[0, 0] * torch.arange(64) + matrix[0, 2]
            inner = (x > 8) & (x < 191)
            assert ((image[0, 24] * 199 - x)[inner]).abs().max() < 1.5


def test_16_bit_and_alpha_images_in_one_batch(tmp_path: Path) -> None:
    rgb = picture(0)
    save(tmp_path / "images" / "a.png", rgb)
    save(tmp_path / "images" / "b.png", np.dstack([rgb, np.full(rgb.shape[:2], 5, np.uint8)]))
    save(tmp_path / "images" / "c.png", rgb[..., 0].astype(np.uint16) * 257)
    (batch,) = take(domain_at(tmp_path, labelled=False), PLAIN, stop=1, batch_size=3)
    order = [batch.names.index(name) for name in "abc"]
    assert torch.equal(batch.image[order[0]], batch.image[order[1]])
    assert torch.equal(batch.image[order[2], 0], batch.image[order[0], 0])


@pytest.mark.parametrize(("length", "fits"), [(75, True), (76, False)])
def test_a_path_too_long_for_sockets_is_told(length: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it results are dropped in the worker, and the parent would wait for ever."""
    with tempfile.TemporaryDirectory(dir="/tmp") as root:
        folder = Path(root) / ("x" * (length - len(root) - 1))
        folder.mkdir()
        assert len(str(folder)) == length
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)  # type: ignore[attr-defined]
        if fits:
            assert [len(ones) for ones in stream(torch.ones, range(1, 3), workers=1)] == [1, 2]
        else:
            with pytest.raises(UserError, match="TMPDIR"):
                next(stream(torch.ones, range(1, 3), workers=1))
