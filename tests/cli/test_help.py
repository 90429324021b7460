"""``--help``, and that the commands that it shows work."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from support.vision import torchvision_models

from fx_oto.cli import texts
from fx_oto.cli.main import main


def commands(text):
    joined = text.replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^  python -m fx_oto (.*)$", joined, re.MULTILINE)]


EXAMPLES = [
    argv
    for text in (texts.EXAMPLES, texts.INSPECT_EXAMPLES, texts.COMPRESS_EXAMPLES)
    for argv in commands(text)
    if argv[0] != "demo" and "--help" not in argv
]


@pytest.mark.parametrize("command", [[], ["inspect"], ["compress"], ["demo"]])
def test_help_shows_examples(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(commands(text)) >= 3
    if command:
        assert "--json" in text


def test_no_command_shows_the_help(capsys):
    assert main([]) == 0
    without = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--help"])
    assert without == capsys.readouterr().out


def test_a_wrong_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["comprss"])
    assert stop.value.code == 2
    assert "invalid choice: 'comprss'" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["compress", "--help"], ["demo", "--help"]])
def test_help_does_not_wait_for_torch(argv):
    code = (
        "import sys; from fx_oto.cli.main import main\n"
        f"try: main({argv!r})\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


@pytest.mark.parametrize("argv", EXAMPLES, ids=" ".join)
def test_the_examples_work(capsys, folder, argv):
    if argv[1].startswith(("torchvision", "timm")):
        torchvision_models()
        pytest.importorskip(argv[1].split(".")[0].split(":")[0], reason="not installed")
        argv = [text.replace("224,224", "64,64") if "vit" not in " ".join(argv) else text for text in argv]
    if "--state-dict" in argv:
        from net import Net

        import fx_oto

        net = Net()
        torch.save(net.state_dict(), folder / "full.pt")
        fx_oto.partition(fx_oto.prepare(net, torch.randn(2, 3, 32, 32))).zero_(0.5)
        torch.save(net.state_dict(), folder / "sparse.pt")
    assert main(argv) == 0
    assert capsys.readouterr().out
    for option in {"--output", "--draw"}.intersection(argv):
        assert (folder / argv[argv.index(option) + 1]).stat().st_size > 0


def test_the_demo_in_json(capsys):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    assert main(["demo", "--epochs", "2", "--width", "8", "--baseline", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"] == "demo"
    assert list(found["models"]) == ["without DHSPG", "full", "compact"]
    assert list(found["models"]["full"]) == ["accuracy", "params", "macs", "samples", "bytes", "seconds"]
    assert found["models"]["compact"]["params"] < found["models"]["full"]["params"]
    assert found["group_sparsity"]["asked"] == 0.7
    assert found["difference"] < 1e-3
