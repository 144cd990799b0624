"""The names under which files and batches lie in Redis. Keys of one batch share the hash tag `{batch id}`.

| key | what |
|---|---|
| `pressrun:file:{id}` | a file's fields |
| `pressrun:files`, `pressrun:batches` | the default tenant's ids in order of creation |
| `pressrun:files:{tenant}`, `pressrun:batches:{tenant}` | those of any other |
| `pressrun:sequence` | what the order of creation is counted with |
| `pressrun:stored:{tenant}` | bytes of each of its files, and their `total` |
| `pressrun:file-expiry` | file ids by the time they expire |
| `pressrun:unfinished-files` | ids of files whose bytes are on their way, by the time they began |
| `pressrun:active:batch`, `:job` | batches and jobs that have not ended, by deadline |
| `pressrun:care:batch`, `:job` | the same, by the time at which housekeeping looks at them next |
| `pressrun:fed` | batches that shards are queued of, by the time when they were fed last |
| `pressrun:{id}` | a batch: its fields, status and counters |
| `pressrun:ends` | how many batches and jobs have ended, by kind and status |

What only one module reads is named there. Knows nothing of what is kept under a name (`fields.py`).
"""

from __future__ import annotations

from .records import DEFAULT_TENANT, BatchKind

ACTIVE: dict[BatchKind, str] = {"batch": "pressrun:active:batch", "job": "pressrun:active:job"}
CARE: dict[BatchKind, str] = {"batch": "pressrun:care:batch", "job": "pressrun:care:job"}
ENDS, FED = "pressrun:ends", "pressrun:fed"
FILE_EXPIRY, UNFINISHED, SEQUENCE = "pressrun:file-expiry", "pressrun:unfinished-files", "pressrun:sequence"


def file_key(file_id: str) -> str:
    return f"pressrun:file:{file_id}"


def batch_key(batch_id: str) -> str:
    return f"pressrun:{{{batch_id}}}"


def file_list(tenant: str) -> str:
    return _list("pressrun:files", tenant)


def batch_list(tenant: str) -> str:
    return _list("pressrun:batches", tenant)


def stored_key(tenant: str) -> str:
    """The bytes of each of a tenant's files, and their total."""
    return f"pressrun:stored:{tenant}"


def _list(of: str, tenant: str) -> str:
    """Where a tenant's ids are listed. The default tenant's is the list of the time before there were others."""
    return of if tenant == DEFAULT_TENANT else f"{of}:{tenant}"
