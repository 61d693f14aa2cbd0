"""A stand-in for Google Cloud Storage: buckets in memory, served as its JSON interface at a port.

What a run uses of it, conditions on generations included. Its three clients, TensorStore, gcsfs and
google-cloud-storage, are told of it by environment variables.
"""

import contextlib
import email
import hashlib
import itertools
import json
import os
import re
import threading
import urllib.parse
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec.config

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)(?:/storageLayout)?")
_UPLOAD = re.compile(r"(?:/resumable)?/upload/storage/v1/b/([^/]+)/o")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/rewriteTo/b/([^/]+)/o/([^/]+)")


class Refused(Exception):
    """A request that is answered with a status other than 200."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


class Storage:
    """Objects of all buckets: name → (generation, content).

    Attributes:
      buckets: by name.
      fail: called with (method, path) of each request; what it raises (`Refused`) is answered.
    """

    def __init__(self, *names: str):
        self.buckets: dict[str, dict[str, tuple[int, bytes]]] = {name: {} for name in names}
        self.fail: Callable[[str, str], None] = lambda method, path: None
        self.lock = threading.Lock()
        self._generations = itertools.count(1)
        self.uploads: dict[str, tuple[str, str, dict[str, str], bytearray]] = {}

    def bucket(self, name: str) -> dict[str, tuple[int, bytes]]:
        if name not in self.buckets:
            raise Refused(404)
        return self.buckets[name]

    def get(self, bucket: str, name: str) -> tuple[int, bytes]:
        if name not in self.bucket(bucket):
            raise Refused(404)
        return self.bucket(bucket)[name]

    def put(self, bucket: str, name: str, content: bytes, query: dict[str, str]) -> dict[str, Any]:
        self.check(bucket, name, query)
        self.bucket(bucket)[name] = next(self._generations), content
        return self.describe(bucket, name)

    def check(self, bucket: str, name: str, query: dict[str, str]) -> None:
        """The condition of a write; generation 0 is that of an object that does not exist."""
        present = self.bucket(bucket).get(name, (0, b""))[0]
        if int(query.get("ifGenerationMatch", present)) != present:
            raise Refused(412)

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        generation, content = self.get(bucket, name)
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": bucket,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "md5Hash": b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], []
        for name in sorted(self.bucket(bucket)):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.append(prefix + rest[: rest.index(delimiter) + 1])
            else:
                items.append(self.describe(bucket, name))
        return {"items": items, "prefixes": sorted(set(prefixes))}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and content in one packet
    storage: Storage

    def log_message(self, *arguments) -> None:
        pass

    def _serve(self) -> None:
        address = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(address.query, keep_blank_values=True))
        body = self._body()
        try:
            self.storage.fail(self.command, self.path)
            with self.storage.lock:
                status, headers, content = self._answer(address.path, query, body)
        except Refused as refused:
            status, headers, content = refused.status, {}, b'{"error": {"message": "refused"}}'
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(
        self, path: str, query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        storage = self.storage
        if match := _COPY.fullmatch(path):
            source, name, target, other = map(urllib.parse.unquote, match.groups())
            content = storage.get(source, name)[1]
            described = storage.put(target, other, content, query)
            return 200, {}, {"done": True, "resource": described}
        if match := _MOVE.fullmatch(path):
            bucket, name, other = map(urllib.parse.unquote, match.groups())
            described = storage.put(bucket, other, storage.get(bucket, name)[1], query)
            del storage.bucket(bucket)[name]
            return 200, {}, described
        if match := _UPLOAD.fullmatch(path):
            return self._upload(urllib.parse.unquote(match[1]), query, body)
        if match := _OBJECT.fullmatch(path):
            bucket, name = map(urllib.parse.unquote, match.groups())
            if self.command == "DELETE":
                storage.get(bucket, name)
                storage.check(bucket, name, query)
                del storage.bucket(bucket)[name]
                return 204, {}, b""
            if query.get("alt") == "media":
                return self._download(bucket, name, query)
            return 200, {}, storage.describe(bucket, name)
        if match := _LIST.fullmatch(path):
            return 200, {}, storage.list(urllib.parse.unquote(match[1]), query)
        if match := _BUCKET.fullmatch(path):
            name = urllib.parse.unquote(match[1])
            storage.bucket(name)
            return 200, {}, {"kind": "storage#bucket", "name": name, "locationType": "region"}
        raise Refused(404)

    def _download(self, bucket: str, name: str, query: dict[str, str]):
        generation, content = self.storage.get(bucket, name)
        if int(query.get("ifGenerationNotMatch", -1)) == generation:
            raise Refused(304)
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise Refused(412)
        headers = {"x-goog-generation": str(generation), "ETag": str(generation)}
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return 200, headers, content
        first, size = int(span[1]), len(content)
        last = min(int(span[2] or size), size - 1)
        if first > last:
            raise Refused(416)
        return (
            206,
            {**headers, "Content-Range": f"bytes {first}-{last}/{size}"},
            content[first : last + 1],
        )

    def _upload(self, bucket: str, query: dict[str, str], body: bytes):
        kind = query["uploadType"]
        if "upload_id" in query:
            return self._go_on(query["upload_id"], body)
        if kind == "media":
            return 200, {}, self.storage.put(bucket, query["name"], body, query)
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            boundary = email.message_from_bytes(head).get_boundary()
            _, about, data, _ = re.split(rb"\r?\n?--" + re.escape(boundary.encode()), body)
            about, data = (re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (about, data))
            return 200, {}, self.storage.put(bucket, json.loads(about)["name"], data, query)
        name = query.get("name") or json.loads(body)["name"]
        number = str(len(self.storage.uploads))
        self.storage.uploads[number] = bucket, name, query, bytearray()
        place = f"http://{self.headers['Host']}{self.path.split('?')[0]}"
        return 200, {"Location": f"{place}?uploadType=resumable&upload_id={number}"}, {}

    def _go_on(self, number: str, body: bytes):
        """A chunk of a resumable upload; the object appears with the last."""
        bucket, name, query, content = self.storage.uploads[number]
        content += body
        if self.headers["Content-Range"].endswith("/*"):
            return 308, {"Range": f"bytes=0-{len(content) - 1}"}, b""
        return 200, {}, self.storage.put(bucket, name, bytes(content), query)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments) -> None:
        """Of clients that were killed, nothing."""


@contextlib.contextmanager
def serving(*names: str) -> Iterator[Storage]:
    """A storage with these buckets, for the clients of this process and of those that it starts.

    Once in a process: the clients keep the address.
    """
    storage = Storage(*names)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"storage": storage}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    os.environ |= {
        "TENSORSTORE_GCS_HTTP_URL": address,
        "STORAGE_EMULATOR_HOST": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "FSSPEC_GCS_TOKEN": "anon",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks over gRPC
    }
    fsspec.config.set_conf_env(fsspec.config.conf)  # it read the environment when imported
    try:
        yield storage
    finally:
        server.shutdown()
        server.server_close()
