"""The things the store keeps: files, batches, shards, lines and their results.

Plain frozen values. They know neither Redis nor HTTP; `fields.py` writes them down, `api/` shows them.
A batch moves only along `MOVES`; a retry opens an ended one again, as its next generation (`retry.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
BatchKind = Literal["batch", "job"]
BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]
Closing = Literal["cancelled", "expired"]
Outcome = Literal["succeeded", "failed", "unrun"]
Part = Literal["output", "error"]

MOVES: dict[BatchStatus, frozenset[BatchStatus]] = {
    "validating": frozenset({"failed", "in_progress", "cancelling", "finalizing"}),
    "in_progress": frozenset({"finalizing", "cancelling"}),
    "finalizing": frozenset({"completed", "expired", "cancelling"}),
    "cancelling": frozenset({"cancelled"}),
    "failed": frozenset(),
    "completed": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
}
ENDED: frozenset[BatchStatus] = frozenset(status for status, moves in MOVES.items() if not moves)
FINAL: dict[Closing | None, Literal["completed", "expired", "cancelled"]] = {
    None: "completed",
    "expired": "expired",
    "cancelled": "cancelled",
}  # What a batch ends as, by why it is wound up.

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"
ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES)
DEFAULT_TENANT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file's description. Times are Unix seconds.

    Its bytes are the blob `files/{id}`. A result file's are `stored_as` another, named after who wrote it.
    """

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None
    status: str = "processed"
    tenant: str = DEFAULT_TENANT
    stored_as: str = ""

    @property
    def blob(self) -> str:
        return self.stored_as or f"files/{self.id}"

    @property
    def index_blob(self) -> str:
        """Where the index lies of the files that it belongs to, if it is a result file."""
        return f"{self.stored_as.rpartition('.')[0] or self.blob}.index"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Lines of a batch. `unrun` lines were cancelled or expired: neither completed nor failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    unrun: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed + self.unrun


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as OpenAI counts them: cached ones are part of input, reasoning ones part of output."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchError:
    """One thing that validation found. `line` is 1-based; None where no line is at fault."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineError:
    """Why a line failed, in OpenAI's fields."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCount:
    """So many lines failed alike: with one code, at one parameter. `message` is the first one's."""

    code: str
    param: str | None
    message: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch, or a native job (`kind` "job": a batch of one line whose blobs lie in Redis).

    `times` maps a status' timestamp field (`in_progress_at`, …) to Unix seconds. `closing` says why a batch is being
    wound up before all of its lines ran. The result files' ids are fixed at creation, so that a batch ended twice has
    the same ones; they are shown only once the files exist. `results_name` begins the names under which whoever ended
    it wrote them; '' where an earlier version did. An `arranged` batch is run in another order than the file's
    (`arranging.py`). Files and batches belong to a `tenant`; a batch of a higher `priority` runs first. A
    `strict` one is to fail at once if its window is too short for it; of a `paused` one nothing new is begun. One that
    was opened again after its end is of a later `generation`, and had used `earlier_tokens` by then; lines of it that
    did not run are left as they are, for the reason `closed_before`, where they were not asked for again. Result files
    expire `output_ttl_s` after they are made; None: never. `event_id` names the event of its end. Where it is made
    of an object in S3, `input_url` and `input_etag` say which, and `input_file_id` is the file that becomes of it;
    `output_prefix` is where its results are wanted too, and `delivery_error` why they are not there. `trace` names the
    span of the request that made it, and when, if it is traced (`traces.py`). An ended job's answer is the segment of
    `segment_writer`.
    """

    id: str
    kind: BatchKind
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: BatchStatus = "validating"
    model: str | None = None
    metadata: dict[str, str] | None = None
    reserved_output_id: str = ""
    reserved_error_id: str = ""
    output_file_id: str | None = None
    error_file_id: str | None = None
    closing: Closing | None = None
    counts: Counts = field(default_factory=Counts)
    usage: Usage = field(default_factory=Usage)
    errors: tuple[BatchError, ...] = ()
    times: dict[str, int] = field(default_factory=dict)
    num_shards: int = 0
    arranged: bool = False
    tenant: str = DEFAULT_TENANT
    priority: int = 0
    strict: bool = False
    paused: bool = False
    estimated_tokens: int = 0
    earlier_tokens: int = 0
    closed_before: Closing | None = None
    generation: int = 0
    common_errors: tuple[ErrorCount, ...] = ()
    output_ttl_s: int | None = None
    event_id: str | None = None
    input_url: str | None = None
    input_etag: str | None = None
    output_prefix: str | None = None
    delivery_error: str | None = None
    trace: str | None = None
    segment_writer: str = ""
    results_name: str = ""

    @property
    def input_blob(self) -> str:
        return f"jobs/{self.id}/input" if self.kind == "job" else f"files/{self.input_file_id}"

    @property
    def arranged_blob(self) -> str:
        """Where the lines of an arranged batch lie in the order in which they are run."""
        return f"arranged/{self.name}"

    @property
    def order_blob(self) -> str:
        """The places in the file of the lines of an arranged batch, in the order in which they are run."""
        return f"{self.arranged_blob}.order"

    @property
    def index_blob(self) -> str:
        """Where each line lies in the files of an ended batch (`line_index.py`)."""
        if self.results_name:
            return f"{self.results_name}.index"
        return f"files/{self.output_file_id or self.error_file_id}.index"

    def result_blob(self, part: Part) -> str:
        """Where the output or the error file of an ended batch lies."""
        if self.results_name:
            return f"{self.results_name}.{part}"
        return f"files/{self.output_file_id if part == 'output' else self.error_file_id}"

    def results_by(self, writer: str) -> str:
        """What begins the names of the files, and of their index, that `writer` makes of this generation."""
        return f"{self.results_folder}/{writer}"

    @property
    def results_folder(self) -> str:
        return f"results/{self.name}"

    @property
    def lines_blob(self) -> str:
        """What the shards are ranges of."""
        return self.arranged_blob if self.arranged else self.input_blob

    def segment_blob(self, shard: int, part: Literal["output", "error"], writer: str = "") -> str:
        """Where the sealed results of one shard, as `writer` wrote them, lie until the batch's files are joined."""
        # In another order shards are other lines: no late writer may take one for the other.
        order = "arranged-" if self.arranged else ""
        written = f".{writer}" if writer else ""
        return f"{self.segments_folder}/{order}{shard:08d}{written}.{part}"

    @property
    def segments_folder(self) -> str:
        folder = "jobs" if self.kind == "job" else "segments"
        return f"{folder}/{self.name}"

    @property
    def name(self) -> str:
        """The id, and the generation if it is not the first: it keeps apart what belongs to different ones."""
        return f"{self.id}.{self.generation}" if self.generation else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A range of lines of a batch: `num_lines` lines from `first_line` (0-based), `size` bytes from `offset`.

    Both are told in the order in which the batch is run.
    """

    index: int
    first_line: int
    num_lines: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request of a batch. `index` is its 0-based place among the batch's requests.

    `options` is what it asks of Pressrun itself, as it was sent (`line_options.py`).
    """

    index: int
    custom_id: str
    url: str
    body: dict[str, Any]
    options: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineResult:
    """How one line ended: `data` is its line of the output or error file, without the newline. One that failed has an
    `error`, which is counted.
    """

    index: int
    outcome: Outcome
    data: bytes
    usage: Usage = field(default_factory=Usage)
    error: LineError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A shard held under a lease: whoever shows `owner` may commit to it until somebody else claims it.

    `attempts` counts the claims, with this one, since a line of the shard was last finished.
    """

    batch: Batch
    shard: Shard
    owner: str
    done: frozenset[int]
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardCommit:
    """Results to write to one shard under one claim; `num_lines` is the shard's whole number of lines."""

    batch_id: str
    shard: int
    owner: str
    num_lines: int
    results: tuple[LineResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The sizes in bytes of a sealed shard's two parts; a part of size 0 has no blob.

    `errors` says which lines are in the error part where there are both: bit i for the i-th; None where a
    worker sealed it that did not note them yet. `writer` is the owner of the claim under which it was written, which is
    part of its name, so that who wakes up too late writes over nobody's; '' where all would write
    the same, or an earlier version wrote.
    """

    output: int
    error: int
    errors: int | None = None
    writer: str = ""

    @property
    def is_mapped(self) -> bool:
        """Whether it is known which line is in which part."""
        return not (self.output and self.error) or self.errors is not None

    def is_error(self, line: int) -> bool:
        """Whether the `line`-th of a mapped segment is in the error part."""
        return bool(self.errors >> line & 1) if self.errors is not None else not self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """What a tenant gets of what is shared, and what it may hold at most; None: no limit.

    `weight` is its part of the engines beside others'. Tokens are estimates (`estimate.py`) of what its batches and
    jobs that have not ended may need; stored bytes are those of its files, results among them.
    """

    name: str
    weight: float = 1.0
    max_enqueued_tokens: int | None = None
    max_active_batches: int | None = None
    max_stored_bytes: int | None = None
    requests_per_minute: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is known of an API key; the key itself is not. `hint` is how it begins, enough to tell it from others."""

    id: str
    tenant: str
    hint: str
    created_at: int
    name: str = ""
    expires_at: int | None = None
    revoked_at: int | None = None

    def is_good(self, now: float) -> bool:
        """Whether it opens the door."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """A model that a live worker serves. `worker` is the name of the worker that said so.

    `tokens_per_s` is what it does while it is busy, prompts and answers together; 0 as long as it has measured nothing.
    `default_sampling` is what holds where a request says nothing (`generation.Defaults`); earlier versions say none.
    """

    id: str
    max_model_len: int
    created: int
    worker: str
    tokens_per_s: float = 0.0
    default_sampling: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a model's live workers do together; 0 tokens a second is unknown."""

    tokens_per_s: float
    num_workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a listing, newest first unless asked otherwise."""

    items: list[T]
    has_more: bool
