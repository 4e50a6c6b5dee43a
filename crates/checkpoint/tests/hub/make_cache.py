"""Downloads the files of the tests with huggingface_hub from a small local hub and records the resulting cache: one JSON
file per version, with the target of every link and the contents of every file.

    python make_cache.py    # writes huggingface_hub-VERSION.json
"""

import hashlib
import http.server
import json
import os
import pathlib
import tempfile
import threading

FIRST = "0123456789abcdef0123456789abcdef01234567"
SECOND = "89abcdef0123456789abcdef0123456789abcdef"
LARGE = 1000
CONFIGS = ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"]
WEIGHTS = {"unet/diffusion_pytorch_model.safetensors": 7, "vae/diffusion_pytorch_model.bin": 9}

first = {file: ('{"file": "%s"}' % file).encode() for file in CONFIGS}
first |= {file: bytes([byte]) * 10_000 for file, byte in WEIGHTS.items()}
second = first | {"vae/config.json": b'{"of": "the second commit"}'}
COMMITS = {FIRST: first, SECOND: second, "main": second}


def etag(contents):
    if len(contents) >= LARGE:
        return hashlib.sha256(contents).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def send(self, status, headers, body, with_body):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def answer(self, with_body):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/model"):
            return self.api(path.removeprefix("/api/models/owner/model"), with_body)
        revision, _, file = path.removeprefix("/owner/model/resolve/").partition("/")
        commit = SECOND if revision == "main" else revision
        contents = COMMITS[commit].get(file)
        if contents is None:
            return self.send(404, {"X-Repo-Commit": commit, "X-Error-Code": "EntryNotFound"}, b"", with_body)
        self.send(200, {"X-Repo-Commit": commit, "ETag": f'"{etag(contents)}"'}, contents, with_body)

    def api(self, rest, with_body):
        kind, _, revision = rest.strip("/").partition("/")
        commit = SECOND if revision in ("", "main") else revision
        files = COMMITS[commit]
        if kind == "tree":
            body = [self.entry(file, contents) for file, contents in sorted(files.items())]
        else:
            siblings = [{"rfilename": file} for file in sorted(files)]
            body = {"id": "owner/model", "sha": commit, "siblings": siblings, "tags": [], "private": False}
        self.send(200, {"Content-Type": "application/json"}, json.dumps(body).encode(), with_body)

    @staticmethod
    def entry(file, contents):
        entry = {"type": "file", "path": file, "size": len(contents), "oid": etag(contents)}
        if len(contents) >= LARGE:
            entry |= {"oid": "0" * 40, "lfs": {"oid": etag(contents), "size": len(contents), "pointerSize": 130}}
        return entry


def written(cache):
    for path in sorted(cache.rglob("*")):
        name = path.relative_to(cache).as_posix()
        if path.is_symlink():
            yield {"path": name, "link": os.readlink(path)}
        elif path.is_file():
            contents = path.read_bytes()
            if len(contents) >= LARGE and contents == contents[:1] * len(contents):
                yield {"path": name, "byte": contents[0], "times": len(contents)}
            else:
                yield {"path": name, "text": contents.decode()}


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with tempfile.TemporaryDirectory() as folder:
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": folder,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    import huggingface_hub

    # A commit by its hash, which writes no ref; then the branch, file by file and as a whole.
    for file in first:
        huggingface_hub.hf_hub_download("owner/model", file, revision=FIRST)
    huggingface_hub.hf_hub_download("owner/model", "unet/config.json")
    try:
        huggingface_hub.hf_hub_download("owner/model", "model_index.json")
    except huggingface_hub.errors.EntryNotFoundError:
        pass
    huggingface_hub.snapshot_download("owner/model")
    version = huggingface_hub.__version__
    cache = {"huggingface_hub": version, "entries": list(written(pathlib.Path(folder, "hub")))}
    target = pathlib.Path(__file__).with_name(f"huggingface_hub-{version}.json")
    target.write_text(json.dumps(cache, indent=1) + "\n")
    print(target)
