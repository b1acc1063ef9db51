"""An S3 server of its own on a host: moto's, in a process, with its objects in memory."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from clusters import free_port
from hosts import Host, answers, wait_until


@dataclass
class ObjectStore:
    """A server with one bucket.

    Attributes:
        url: of the server.
        bucket: its name.
    """

    url: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """What everybody needs who reads or writes there."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    def names(self, prefix: str) -> list[str]:
        """Names of all objects that begin so, without what stands for a folder."""
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ()) if not entry["Key"].endswith("/")]

    def read(self, name: str) -> bytes:
        """The bytes of an object."""
        return self._client().get_object(Bucket=self.bucket, Key=name)["Body"].read()

    def make_bucket(self) -> None:
        self._client().create_bucket(Bucket=self.bucket)

    def _client(self):
        import boto3

        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.url, **keys)


@contextlib.contextmanager
def object_store(host: Host) -> Iterator[ObjectStore]:
    """A server on a host, while the context is open."""
    port = free_port()
    store = ObjectStore(f"http://{host.address}:{port}", "studies")
    process = host.start(sys.executable, "-m", "moto.server", "-H", host.address, "-p", port, log=host.folder / "s3.log")
    try:
        wait_until(lambda: answers(store.url), "the S3 server", process=process)
        store.make_bucket()
        yield store
    finally:
        process.kill()
        process.wait(30)
