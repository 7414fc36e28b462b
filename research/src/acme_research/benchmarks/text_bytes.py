"""Bytes within a point of a regression on the whole checkpoint ÷ its bytes in float32.

``python -m acme_research.benchmarks.text_bytes --data DATA --references REFERENCES``: ten devices
with a domain of CLINC150 each, under limits of a fourteenth and a twentieth of MiniLM's bytes; two
of the cases of ``versus_probe``, whose splits, rival and kept runs these are.
"""

from statistics import median

from acme_research.benchmarks.versus_probe import compared, read_options, run
from acme_research.frame.record import write_benchmark

_WITHIN = -1.0
_LIMITS = "a domain each, a fourteenth", "a domain each, a twentieth"


def main() -> None:
    given, details, smallest = read_options(__doc__, "text_bytes"), {}, []
    for seed in given.seeds:
        rows = {name: compared(name, run(name, seed, given)) for name in given.case or _LIMITS}
        shares = {name: row["bytes"] / row["probe bytes"][0] for name, row in rows.items()}
        near = [shares[name] for name, row in rows.items() if row["difference"] >= _WITHIN]
        smallest.append(min(near, default=1.0))
        details[f"seed {seed}"] = rows
        for name, row in rows.items():
            print(f"{name}, seed {seed}: {shares[name]:.3f} of the bytes, {row}", flush=True)
    ends = min(smallest), max(smallest)
    write_benchmark("text_bytes", median(smallest), ends, details, seeds=given.seeds)


if __name__ == "__main__":
    main()
