"""What a server makes of folders that are broken, incomplete, hostile or deleted."""

import os
import shutil

import pytest

from kdrop.errors import check_model_name

httpx = pytest.importorskip("httpx", reason="KServe is not installed")
pytest.importorskip("kserve", reason="KServe is not installed: the extra serve")
from servers import running, wait_until  # noqa: E402

BODY = {"instances": [[0.1, 0.2]]}


def links_to_itself(path):
    path.symlink_to(path)


def half_written(path):
    variables = next((path / "variables").glob("*.data-*"))
    variables.write_bytes(variables.read_bytes()[:100])


def dangling_label(path):
    (path / "assets" / "labels.txt").unlink()
    (path / "assets" / "labels.txt").symlink_to("/nowhere")


def outside_label(path):
    (path / "assets" / "labels.txt").unlink()
    (path / "assets" / "labels.txt").symlink_to("/etc/passwd")


def pipe_for(name):
    def change(path):
        (path / name).unlink(missing_ok=True)
        os.mkfifo(path / name)

    return change


def linked_variables(path):
    """TensorFlow would open the file that leads out of the folder."""
    (path / "variables").rename(path.parent / "shared")
    (path.parent / "shared" / "more").symlink_to("/etc/passwd")
    (path / "variables").symlink_to("../shared")


NEW = {  # versions that cannot be loaded
    "dangling link": lambda path: path.symlink_to("/nowhere"),
    "link to itself": links_to_itself,
    "link to the folder above": lambda path: path.symlink_to(".."),
    "link out": lambda path: path.symlink_to("/etc"),
    "file": lambda path: path.write_text("no model"),
    "empty": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
}
CHANGED = {
    "half-written": half_written,
    "dangling label": dangling_label,
    "label from outside": outside_label,
    "not text": lambda path: (path / "assets" / "labels.txt").write_bytes(b"\xff\xfe"),
    "no model": lambda path: (path / "saved_model.pb").write_bytes(b"\0" * 100),
    "linked folder": linked_variables,
    "pipe of labels": pipe_for("assets/labels.txt"),
    "pipe as model": pipe_for("saved_model.pb"),
    "pipe beside": pipe_for("variables/pipe"),
}


@pytest.fixture(scope="module")
def folder(exported_path, tmp_path_factory):
    """Broken models and versions beside good ones, before the server starts."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("a", "b", "z"):
        shutil.copytree(exported_path, folder / name / "1")
    for number, make in enumerate(NEW.values(), start=2):
        make(folder / "b" / str(number))
    for number, change in enumerate(CHANGED.values(), start=20):
        shutil.copytree(exported_path, folder / "b" / str(number))
        change(folder / "b" / str(number))
    outside = tmp_path_factory.mktemp("outside")
    shutil.copytree(exported_path, outside / "m" / "1")
    (folder / "linked").symlink_to(outside / "m")
    (folder / "loop").symlink_to(folder / "loop")
    for name in ("7", "c:predict", "modèle"):
        shutil.copytree(exported_path, folder / name / "1")
    (folder / "9").mkdir()
    shutil.copytree(exported_path, folder / "3")  # a version beside models
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "log"


@pytest.fixture(scope="module")
def client(folder, log):
    with running(folder, log) as (_, client):
        yield client
    assert "Traceback" not in log.read_text()


def version(client, name):
    answer = client.post(f"/v1/models/{name}:predict", json=BODY)
    return answer.json()["model_version"] if answer.status_code == 200 else None


def test_what_is_broken_at_the_start_leaves_the_others_served(client, folder, log):
    assert sorted(client.get("/v1/models").json()["models"]) == ["a", "b", "z"]
    assert [version(client, name) for name in "abz"] == ["1", "1", "1"]
    shutil.copytree(folder / "a" / "1", folder / "z" / "2.new")
    (folder / "z" / "2.new").rename(folder / "z" / "00002")
    wait_until(lambda: version(client, "z") == "2", 60)  # several scans later
    for number in (*range(2, 2 + len(NEW)), *range(20, 20 + len(CHANGED))):
        assert log.read_text().count(f"skipped {folder / 'b' / str(number)},") == 1
    for name in ("linked", "3", "7", "c:predict", "modèle"):
        assert log.read_text().count(f"skipped {folder / name},") == 1


def test_a_version_that_arrives_slowly_is_loaded_again(client, folder, exported_path):
    (folder / "slow" / "1").mkdir(parents=True)
    for name in ("saved_model.pb", "variables", "assets"):
        source, target = exported_path / name, folder / "slow" / "1" / name
        (shutil.copy if source.is_file() else shutil.copytree)(source, target)
        if name == "variables":
            wait_until(lambda: version(client, "slow") == "1", 60)
            answer = client.post("/v1/models/slow:predict", json=BODY).json()
            assert "labels" not in answer

    def labels():
        return client.post("/v1/models/slow:predict", json=BODY).json().get("labels")

    wait_until(lambda: labels() == ["red", "green", "blue"], 60)


def test_a_deleted_model_is_withdrawn(client, folder):
    shutil.copytree(folder / "a", folder / "deleted")
    wait_until(lambda: version(client, "deleted") == "1", 60)
    shutil.rmtree(folder / "deleted")
    wait_until(lambda: version(client, "deleted") is None, 60)
    assert client.get("/v2/models/deleted/ready").status_code == 404
    assert version(client, "a") == "1"


def test_a_model_replaced_by_a_link_out_of_the_folder_is_withdrawn(
    client, folder, log, tmp_path
):
    for times in (1, 2):  # the second error is logged, too
        shutil.copytree(folder / "a", folder / "moved")
        wait_until(lambda: version(client, "moved") == "1", 60)
        (folder / "moved").rename(tmp_path / str(times))
        (folder / "moved").symlink_to(tmp_path / str(times))
        wait_until(lambda: version(client, "moved") is None, 60)
        assert log.read_text().count(f"skipped {folder / 'moved'},") == times
        (folder / "moved").unlink()


def test_links_within_a_model_are_followed(client, folder):
    shutil.copytree(folder / "a" / "1", folder / "within" / "data")
    (folder / "within" / "5").symlink_to("data")
    wait_until(lambda: version(client, "within") == "5", 60)


def test_a_model_that_is_no_version_stays_one_when_a_version_appears(client, folder):
    shutil.copytree(folder / "a" / "1", folder / "8")  # a version among models
    shutil.copytree(folder / "a", folder / "later")
    wait_until(lambda: version(client, "later") == "1", 60)
    assert version(client, "a") == "1" and version(client, folder.name) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_version_that_cannot_be_read_is_skipped(client, folder):
    shutil.copytree(folder / "a" / "1", folder / "a" / "4")
    (folder / "a" / "4").chmod(0)
    shutil.copytree(folder / "a" / "1", folder / "z" / "4")
    wait_until(lambda: version(client, "z") == "4", 60)
    assert version(client, "a") == "1"
    (folder / "a" / "4").chmod(0o755)


def test_names_of_train_py_are_names_of_models():
    for name in ("spiral-inverted-dropout", "cifar10_2.x", "_a", "1a"):
        check_model_name(name)
