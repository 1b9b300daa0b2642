"""Models go to the Hub and come back, against a stand-in of the Hub on this machine; what fails is said in one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from hub_stand_in import Hub, client_environment, stand_in
from huggingface_hub import errors

from sampling import hub, save
from sampling.pipeline import TwoStagePipeline
from tessera.artifacts.manifests import file_entry, manifest_text
from tessera.errors import UserError

# Works in a process of its own, since the Hub's client reads its address and its cache's place when it is imported.
CLIENT = """
import json, sys
from pathlib import Path
import huggingface_hub, torch
from tessera import TwoStagePipeline
from tessera.errors import UserError

def refused(call):
    try:
        call()
    except UserError as error:
        return str(error)

load = TwoStagePipeline.from_pretrained
own = load("saved", device="cpu")
images = own.generate(3, "each", seed=1)
said = {"address": own.push_to_hub("me/tiny", license="mit")}
commit = said["address"].rpartition("/")[2]
with torch.no_grad():
    next(own.prior.parameters()).add_(1.0)
said["branch"] = own.push_to_hub("me/tiny", revision="next", message="Other weights")
own.push_to_hub("me/secret", private=True)
own.push_to_hub("me/secret", private=True)
said["private"] = refused(lambda: own.push_to_hub("me/tiny", private=True))
came = {name: load("me/tiny", device="cpu", revision=name) for name in (None, "main", "next", commit)}
said["same"] = {str(name): torch.equal(images, each.generate(3, "each", seed=1)) for name, each in came.items()}
said["repr"] = repr(came[commit]).splitlines()[0]
said["bytes"] = all(
    path.read_bytes() == (Path("saved") / path.relative_to("again")).read_bytes()
    for path in came[commit].save_pretrained("again").rglob("*") if path.is_file() and path.name != "README.md"
)
for name in ("me/none", "me/empty", "me/bomb", "me/huge"):
    said[name] = refused(lambda: load(name, device="cpu"))
said["revision"] = refused(lambda: load("me/tiny", revision="none"))
said["token"] = refused(lambda: own.push_to_hub("me/tiny", token="hf_other"))
huggingface_hub.constants.HF_HUB_OFFLINE = True
said["offline"] = torch.equal(images, load("me/tiny", device="cpu", revision=commit).generate(3, "each", seed=1))
said["offline, not in the cache"] = refused(lambda: load("me/other"))
said["offline, to the Hub"] = refused(lambda: own.push_to_hub("me/tiny"))
print(json.dumps(said))
"""


def put_hostile(there: Hub, saved: Path, mark: Path) -> None:
    """Models whose manifests fit: one with a pickle as weights, one with a configuration of 65 MB; and one without."""
    there.put("me/empty", "main", {"README.md": b"# Nothing", "vqvae/pytorch_model.bin": b"x"})
    bomb = pickle.dumps(Bomb(mark))
    huge = json.dumps({"x": "y" * (65 * 2**20)}).encode()
    for name, file, content in (("bomb", "model.safetensors", bomb), ("huge", "config.json", huge)):
        files = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
        files[f"vqvae/{file}"] = content
        files["vqvae/manifest.json"] = signed(
            {n: files[f"vqvae/{n}"] for n in ("config.json", "model.safetensors")}, saved
        )
        there.put(f"me/{name}", "main", files)


def signed(files: dict[str, bytes], place: Path) -> bytes:
    """A manifest that fits these files."""
    entries = {}
    for name, content in files.items():
        (place.parent / "entry").write_bytes(content)
        entries[name] = file_entry(place.parent / "entry")
    return manifest_text("vqvae", {}, entries).encode()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_models_go_to_the_hub_and_come_back_the_same(tiny_run: Callable[..., Path], repository: Path) -> None:
    folder = tiny_run(prior="pixelcnn") / "elsewhere"
    folder.mkdir()
    saved = TwoStagePipeline.load("models", "cpu").save_pretrained(folder / "saved")
    with stand_in() as there:
        put_hostile(there, saved, folder / "mark")
        earlier = ("decoders/refined/config.json", "samples.png", ".eval_results/tessera.yaml", "prior/config.json")
        there.put("me/tiny", "main", dict.fromkeys((*earlier, "notes.md", "prior/notes.md"), b"of an earlier model"))
        environment = os.environ | client_environment(there, folder / "home") | {"PYTHONPATH": str(repository)}
        command = [sys.executable, "-c", CLIENT]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        uploaded, asked = there.files("me/tiny"), there.asked
    names = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert set(uploaded) == names | {"notes.md", "prior/notes.md"}, "what was saved, and files of the owner's own"
    assert all(uploaded[name] == (saved / name).read_bytes() for name in names - {"README.md"})
    card = uploaded["README.md"].decode()
    assert 'from_pretrained("me/tiny")' in card and card.startswith("---\nlicense: mit\n")
    assert [path for method, path in asked if method == "POST" and "/commit/" in path] == [
        "/api/models/me/tiny/commit/main",
        "/api/models/me/tiny/commit/next",
        "/api/models/me/secret/commit/main",
        "/api/models/me/secret/commit/main",
    ]
    assert said["same"] == {"None": True, "main": True, said["address"][-40:]: True, "next": False}
    assert said["bytes"] and said["offline"] and f"me/tiny at {said['address'][-40:][:12]}" in said["repr"]
    assert not [path for _, path in asked if "pytorch_model.bin" in path], "only a pipeline's files are asked for"
    assert not (folder / "mark").exists()
    for name, message in {
        "private": "it was on the Hub before and is public",
        "me/none": "no such model on the Hub, or the model is private",
        "me/empty": "no pipeline of Tessera, since it has no vqvae/manifest.json",
        "me/bomb": "vqvae/model.safetensors: not a readable safetensors model",
        "me/huge": "vqvae/config.json: larger than",
        "revision": "there is no revision 'none' of it",
        "token": "the Hub knows no such token; log in by `hf auth login`",
        "offline, not in the cache": "it is not in the Hub's cache, and the Hub cannot be reached",
        "offline, to the Hub": "HF_HUB_OFFLINE keeps the Hub's library from the network; unset it to upload",
    }.items():
        assert message in said[name] and "\n" not in said[name], (name, said[name])
    assert "/tmp" not in said["me/bomb"], "the message names the model, and not where its files were copied to"


def answer(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("POST", "http://127.0.0.1/"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (httpx2.ConnectError("refused"), "the Hub cannot be reached (refused)"),
        (httpx2.ReadTimeout("slow"), "the Hub cannot be reached (slow)"),
        (errors.GatedRepoError("x", response=answer(403)), "its owner grants access on request"),
        (errors.HfHubHTTPError("x", response=answer(403)), "the token does not suffice to upload"),
        (errors.HfHubHTTPError("502 Bad\nGateway", response=answer(502)), "the Hub answered 502 Bad Gateway"),
    ],
)
def test_what_the_hub_answers_is_one_line(tmp_path, monkeypatch, error, message):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fail)
    with pytest.raises(UserError) as caught:
        hub.upload(tmp_path, "me/tiny", None, None, "token", "x")
    assert f"me/tiny: {message}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_defect_of_the_client_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.upload(tmp_path, "me/tiny", None, None, "token", "x")


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../x", "me/", "/x", "me/ x", "me/..", "", "C:/x"])
def test_what_is_no_id_is_refused_before_anything_is_loaded(in_tmp, repository, capsys, name):
    params = str(repository / "params.yaml")
    assert save.main(["--push", name, "--params", params]) == 2
    assert f"{name!r}: no id of the Hub; expected OWNER/NAME" in capsys.readouterr().err


def test_without_a_token_nothing_is_loaded(in_tmp, repository, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert save.main(["--push", "me/tiny", "--params", str(repository / "params.yaml")]) == 2
    assert capsys.readouterr().err == (
        "error: there is no token of the Hub on this machine; log in by `hf auth login`, or set HF_TOKEN\n"
    )


def test_the_command_lists_what_it_would_upload(tiny_run, capsys):
    tiny_run()
    capsys.readouterr()  # a run that no test has made before tells of its stages
    assert save.main(["--push", "me/tiny", "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in printed[:7]] == [
        "README.md",
        "prior/config.json",
        "prior/manifest.json",
        "prior/model.safetensors",
        "vqvae/config.json",
        "vqvae/manifest.json",
        "vqvae/model.safetensors",
    ]
    assert printed[-1] == "me/tiny: nothing uploaded, because of --dry-run" and len(printed) == 9
