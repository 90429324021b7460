"""Whatever happens while a file is written, it is the whole new one or the old one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading

import pytest
import torch
from support.saved import compact
from torch import nn

import fx_oto

ROWS = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def network(width=16):
    return compact(nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4)), ROWS)


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "small.safetensors"
    fx_oto.save(network(), path)
    return path


PROGRAM = """
import os, resource, signal, sys
import torch, fx_oto
from torch import nn
from fx_oto.deploy import saving

def killed(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def half(tensors, path, metadata):
    path.write_bytes(b"x" * 100)
    killed()

x = torch.randn(2, 8)
net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
gm = fx_oto.prepare(net, x)
fx_oto.partition(gm).zero_(0.5)
small = fx_oto.compress(gm)
what = sys.argv[2]
if what == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
if what == "killed while it is written":
    saving.save_file = half
if what == "killed before it is on the disk":
    os.fsync = killed
if what == "killed before it is in its place":
    os.replace = killed
try:
    fx_oto.save(small, sys.argv[1])
except fx_oto.FileError as error:
    print(error)
"""
ENDS = ["killed while it is written", "killed before it is on the disk", "killed before it is in its place"]


@pytest.mark.parametrize("what", ["full disk", *ENDS, "nothing"])
def test_the_old_file_stays_until_the_new_one_is_whole(old, what):
    before = old.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, old, what], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == (-signal.SIGKILL if what in ENDS else 0), done.stderr
    assert (old.read_bytes() == before) == (what != "nothing")
    fx_oto.load(old)
    left = [path.name for path in old.parent.iterdir() if path != old]
    assert len(left) == (what in ENDS)  # what a process that was killed had begun, under a name of its own
    if what == "full disk":
        assert "cannot be written" in done.stdout
        assert "What was there before is as it was" in done.stdout


def test_folders_that_take_no_file(old, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    wrong = [tmp_path / "nowhere" / "small.safetensors", old / "small.safetensors", tmp_path]
    if os.geteuid():  # root may write everywhere
        wrong.append(tmp_path / "locked" / "small.safetensors")
    for path in wrong:
        with pytest.raises(fx_oto.FileError, match="cannot be written"):
            fx_oto.save(network(), path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["locked", old.name]


def test_it_is_readable_as_other_files_are_and_links_stay(old, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(old.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    link = tmp_path / "link.safetensors"
    link.symlink_to(old)
    fx_oto.save(network(32), link)
    assert link.is_symlink()
    assert fx_oto.load(old).get_parameter("0.weight").shape == (16, 8)


def test_several_that_save_at_once_leave_one_whole_file(tmp_path):
    path, widths = tmp_path / "small.safetensors", (8, 16, 32)
    models = {width: network(width) for width in widths}
    errors = []

    def work(width):
        try:
            for _ in range(20):
                fx_oto.save(models[width], path)
                assert fx_oto.load(path).get_parameter("0.weight").shape[0] * 2 in widths
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(width,)) for width in widths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_loaded_model_does_not_read_its_file_any_more(old):
    loaded = fx_oto.load(old)
    wanted = loaded(ROWS)
    old.write_bytes(b"")
    assert torch.equal(loaded(ROWS), wanted)
