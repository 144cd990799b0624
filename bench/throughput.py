"""Our engine beside vLLM and transformers on fixed workloads, and how near each comes to what the machine can do.

    python bench/throughput.py --model llama-3.1-8b --workload uniform,sharegpt,prefix,prefill,mixed
    python bench/throughput.py --model tiny --num-requests 8      needs no GPU

Every engine runs the same token ids, greedily, end of sequence ignored, with the same output lengths, in a child
process of its own, one after another: one request (start to first token), a warm-up run, then each workload with an
empty prefix cache. Peers that are not installed are left out. Transformers takes minutes for what the others do in
seconds: `--engines pressrun,vllm` leaves it out.

Prints the machine's ceilings, measured in the same run, a line for every measured run, then tables, then one JSON line.
The limits are those of bench/limits.py. The exit code is 1 if an engine failed.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from pressrun.bench.comparison import Comparison
from pressrun.bench.options import parse
from pressrun.bench.tables import print_limits, print_profile, print_results, print_steps, rounded


def main() -> int:
    options, flags = parse(__doc__ or "")
    # A timeout's SIGTERM must end the child too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="pressrun-bench-") as root:
        comparison = Comparison(options, flags, Path(root))
        comparison.run()
        if comparison.ceilings is None:
            return 1
        results, limits = comparison.results(), comparison.limits()
    print()
    print_limits(limits)
    print()
    print_results(results, [engine for engine in options.engines if engine not in ("pressrun", *comparison.absent)])
    ours = [result for result in results if result["engine"] == "pressrun"]
    if ours:
        print()
        print_steps(ours)
    for workload, profile in comparison.profiles().items():
        print()
        print_profile(workload, profile)
    summary = {
        "model": options.model,
        "engine_flags": flags,
        "vllm_args": options.vllm_args,
        "ceilings": asdict(comparison.ceilings),
        "limits": limits,
        "results": results,
        "profiles": comparison.profiles(),
        "not_installed": comparison.absent,
        "errors": comparison.errors,
    }
    print(json.dumps(rounded(summary)))
    return 1 if comparison.errors else 0


if __name__ == "__main__":
    sys.exit(main())
