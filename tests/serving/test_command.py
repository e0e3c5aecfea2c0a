"""The command `python -m kdrop.serving`: errors in its arguments."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from kdrop.serving import __main__ as command


@pytest.fixture
def error(monkeypatch, capsys):
    """Run the command with invalid arguments; return its error message."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kdrop.serving", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            command.main()
        assert end.value.code == 2
        return capsys.readouterr().err

    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_folder_without_models_is_an_error(error, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / ".partial-1").mkdir()
    for folder, reason in (
        ("missing", "there is no folder"),
        ("file", "there is no folder"),
        (".partial-1", "contains no exported model"),
    ):
        sentence = error(tmp_path / folder)
        assert sentence.count("\n") == 1 and reason in sentence
        assert str(tmp_path / folder) in sentence


def test_a_folder_of_broken_models_is_an_error(error, tmp_path):
    pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    assert "no model in" in error(tmp_path, "--port", 0).splitlines()[-1]


def test_an_address_that_cannot_be_used_is_an_error(error, models_folder):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        sentence = error(models_folder, "--port", port)
    expected = f"kdrop.serving: 127.0.0.1 port {port} cannot be used: "
    assert sentence.startswith(expected) and sentence.count("\n") == 1
    assert os.strerror(errno.EADDRINUSE) in sentence
    for arguments in (["--port", 70000], ["--host", "no.such.host.invalid"]):
        assert error(models_folder, *arguments).count("\n") == 1
    for host in (70 * "é", "a..b"):  # IDNA cannot encode them
        assert "cannot be used" in error(models_folder, "--host", host)
    assert "invalid int value: 'x'" in error(models_folder, "--port", "x")


@pytest.mark.slow
def test_without_its_packages_the_command_names_the_extra(models_folder):
    code = """
import runpy, sys
for name in ("kserve", "fastapi", "tensorflow_serving"):
    sys.modules[name] = None  # makes the import fail
runpy.run_module("kdrop.serving", run_name="__main__", alter_sys=True)
"""
    command = [sys.executable, "-c", code, models_folder, "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    sentence = done.stderr.splitlines()[-1]
    assert (
        sentence.startswith("kdrop.serving: ") and "pip install '.[serve]'" in sentence
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", "", 20 * "9", "\u0661"])
def test_a_limit_that_is_no_positive_integer_is_an_error(error, models_folder, value):
    for option in ("--max-rows", "--max-bytes", "--max-values", "--max-requests"):
        assert "is not an integer from 1" in error(models_folder, f"{option}={value}")
