"""Sharing weights: pushed to and loaded from a local stand-in of the Hugging Face Hub's API."""

import base64
import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """One repository: created, filled by one commit, listed and read."""

    files: ClassVar[dict[str, bytes]] = {}

    def answer(self, content=b"", status=200, **headers):
        content = json.dumps(content).encode() if isinstance(content, dict | list) else content
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        content = self.body()
        if self.path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(content)["files"]]  # fmt: skip
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/someone/filter/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT})
        else:  # the repository is created, the card's header is valid
            url = f"http://{self.headers['Host']}/someone/filter"
            self.answer({"url": url, "errors": [], "warnings": []})

    def do_GET(self):
        if "/resolve/" in self.path:
            name = self.path.rpartition("/")[2]
            if name not in self.files:
                return self.answer(status=404, X_Error_Code="EntryNotFound")
            tag = f'"{sha256(self.files[name]).hexdigest()}"'
            return self.answer(self.files[name], X_Repo_Commit=COMMIT, ETag=tag)
        if "/tree/" in self.path:
            sums = {name: (len(x), sha256(x).hexdigest()) for name, x in self.files.items()}
            files = [{"path": name, "size": size, "oid": oid} for name, (size, oid) in sums.items()]
            return self.answer([{"type": "file"} | file for file in files])
        siblings = [{"rfilename": name} for name in self.files]
        found = {"id": "someone/filter", "sha": COMMIT, "siblings": siblings}
        self.answer(found | {"tags": [], "private": False})

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


SHARE = """
import torch, nbsupport
from nbsupport.denoisers.models import Filtering

images = nbsupport.samples().images
mine = Filtering(width=2, kernel_size=3)
torch.nn.init.normal_(mine.outputs["kernels"].weight)
row = {"metric": "accuracy", "eps": 0.01, "n": 7}
rows = [row | {"attack": "pgd", "value": 0.625}, row | {"attack": "adaptive", "value": 0.125}]
mine.about = {"data": "seven of mine", "evaluation": rows}
mine.push_to_hub("someone/filter", token="secret")
theirs = Filtering.from_pretrained("someone/filter")
assert torch.equal(mine(images), theirs(images)) and theirs.about == mine.about
"""


def test_a_denoiser_and_its_card_are_pushed_to_the_hub_and_loaded_from_it(hub, tmp_path):
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}
    options = dict(env=environment, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-c", SHARE], **options)
    assert done.returncode == 0, done.stderr
    assert set(Hub.files) >= {"config.json", "model.safetensors"}
    card = Hub.files["README.md"].decode()
    assert "seven of mine" in card
    assert [line.split()[1::2] for line in card.splitlines() if line.startswith("|")][2] == [
        "1e-2", "0.625", "0.125",
    ]  # fmt: skip
