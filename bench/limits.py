"""The physical limits of a workload on one device: its bytes and operations counted, over the device's ceilings.

`sequential` has kernels run one after another, each at its own ceiling: the sum. `overlap` has matrix work and memory
traffic hidden in each other: the larger of the two. Neither counts anything that an engine does beside the model, and
both read every sequence's whole KV cache at every step; `shared_once` is `sequential` for an engine that reads
a beginning that many prompts share once a step for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ceilings import Ceilings
from .shapes import Shape
from .workloads import Workload

# Of the memory: what a page pool may take, and what a step's activations need beside it.
USABLE_SHARE, ACTIVATION_BYTES = 0.92, 3.5e9
# 4-bit weights with a scale and a zero a group of 128.
QUANTIZED_WEIGHT_BYTES = 4.16 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds for the whole workload, with their parts; `num_running` is how many sequences fit at once."""

    sequential: float
    overlap: float
    shared_once: float | None
    product: float
    attention: float
    kv_reads: float
    weight_reads: float
    num_running: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a model's tokens cost. `active` and `head` are parameters that one token is multiplied with."""

    num_layers: int
    query_size: int
    active: float
    head: float
    weight_bytes: float  # read at every step
    table_bytes: float  # the embeddings, of which a step reads next to nothing
    kv_bytes: float  # of one token in all layers


def sizes_of(shape: Shape, weight_bytes: float, kv_bytes: float) -> Sizes:
    """`weight_bytes` and `kv_bytes` are those of one number."""
    hidden, num_layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    head_size = shape.get("head_dim") or hidden // heads
    query_size, kv_size = heads * head_size, (shape.get("num_key_value_heads") or heads) * head_size
    attention = hidden * (query_size + 2 * kv_size) + query_size * hidden
    if "num_experts" in shape:
        expert = 3 * hidden * shape["moe_intermediate_size"]
        total = attention + shape["num_experts"] * expert
        active = attention + shape["num_experts_per_tok"] * expert
    else:
        total = active = attention + 3 * hidden * shape["intermediate_size"]
    body_bytes = QUANTIZED_WEIGHT_BYTES if shape.get("quantization_config") else weight_bytes
    head = shape["vocab_size"] * hidden
    return Sizes(
        num_layers=num_layers,
        query_size=query_size,
        active=num_layers * active,
        head=head,
        weight_bytes=num_layers * total * body_bytes + head * weight_bytes,
        table_bytes=0 if shape.get("tie_word_embeddings") else head * weight_bytes,
        kv_bytes=2 * num_layers * kv_size * kv_bytes,
    )


def limits_of(sizes: Sizes, workload: Workload, ceilings: Ceilings) -> Limits | None:
    """None if the weights leave no memory for a sequence."""
    items, shared, num_heads = workload.items, workload.num_shared, workload.num_heads
    count, num_output = len(items), workload.num_output
    bytes_per_s, flops = ceilings.copy_gbps * 1e9, ceilings.product_tflops * 1e12

    num_computed = workload.num_input - shared * (count - num_heads) + num_output
    product = (2 * sizes.active * num_computed + 2 * sizes.head * num_output) / flops
    seen = sum(len(item.prompt) ** 2 - shared**2 for item in items) / 2
    attention = 4 * sizes.num_layers * sizes.query_size * seen / (ceilings.attention_tflops * 1e12)

    # A sequence is on average half way through its output.
    mean_held = sum(len(item.prompt) + item.num_output / 2 for item in items) / count - shared * (1 - num_heads / count)
    left = USABLE_SHARE * ceilings.memory_bytes - sizes.weight_bytes - sizes.table_bytes - ACTIVATION_BYTES
    if left <= 0:
        return None
    num_running = min(count, left / (sizes.kv_bytes * max(mean_held, 1)))
    num_steps = max(num_output / num_running, max(item.num_output for item in items))
    weight_reads = num_steps * sizes.weight_bytes / bytes_per_s

    num_read = sum(item.num_output * (len(item.prompt) + item.num_output / 2) for item in items)
    kv_reads = num_read * sizes.kv_bytes / bytes_per_s
    num_read_once = num_read - shared * (num_output - num_heads * num_steps)
    before_reads = max(product, weight_reads) + attention
    return Limits(
        sequential=before_reads + kv_reads,
        overlap=max(product + attention, weight_reads + kv_reads),
        shared_once=before_reads + num_read_once * sizes.kv_bytes / bytes_per_s if shared else None,
        product=product,
        attention=attention,
        kv_reads=kv_reads,
        weight_reads=weight_reads,
        num_running=num_running,
    )
