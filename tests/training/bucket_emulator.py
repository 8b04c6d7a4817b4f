"""A bucket called `bucket` of Google Cloud Storage in memory: `bucket_emulator.py PORT`; it says when it is ready.

The emulator (pip install gcp-storage-emulator) does not tell readers which generation of an object they got, and writes
whatever generation a writer expects. Checkpoints are written by several threads that rely on both.
https://cloud.google.com/storage/docs/request-preconditions
"""

import functools
import sys
import threading

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import objects


def generation(storage, bucket: str, name: str) -> str:
    """Of the object; "0" where there is none."""
    try:
        return storage.get_file_obj(bucket, name)["generation"]
    except Exception:
        return "0"


def told(handler, request, response, storage, *rest, **more):
    response["x-goog-generation"] = generation(storage, request.params["bucket_name"], request.params["object_id"])
    handler(request, response, storage, *rest, **more)


def uploaded(upload, request, response, storage):
    there = generation(storage, request.params["bucket_name"], request.query["name"][0])
    if request.query.get("ifGenerationMatch", [there]) == [there]:
        upload(request, response, storage)
    else:
        response.status = 412


if __name__ == "__main__":
    objects._media_upload = functools.partial(uploaded, objects._media_upload)
    for _, handlers in server.HANDLERS:
        for method, handler in handlers.items():
            if handler in (objects.download, objects.get):
                handlers[method] = functools.partial(told, handler)
    server.create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").start()
    print("ready", flush=True)
    threading.Event().wait()
